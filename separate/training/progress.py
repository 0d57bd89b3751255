"""The progress bar of an epoch, on a terminal, and the throughput of its steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from tqdm import tqdm


class Progress:
    """Counts steps and the time spent waiting for data.  batch_size: examples in a step; device: of the training.

    hidden: for tqdm's `disable`; None shows the bar on a terminal only.
    """

    def __init__(
        self, title: str, steps: int, batch_size: int, device: torch.device, hidden: bool | None = None
    ) -> None:
        self.bar = tqdm(total=steps, desc=title, leave=False, disable=hidden)
        self.batch_size, self.device = batch_size, device
        self.steps, self.waited = 0, 0.0
        self.started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The context in which the training waits for a batch."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def update(self, sums: Mapping[str, float]) -> None:
        """Count a step.  sums: the metrics added up over the epoch."""
        self.steps += 1
        if not self.bar.disable:
            loss = sums["loss"] / sums["steps"] if sums.get("steps") else math.nan
            rates = self.rates()
            self.bar.set_postfix_str(
                f"loss {loss:.4g}, {rates['train/examples_per_second']:.3g} examples/s, "
                f"waiting for data {rates['train/waiting']:.0%}, {rates['train/memory']:.2g} GB",
                refresh=False,
            )
        self.bar.update()

    def rates(self) -> dict[str, float]:
        """Throughput, the share of time spent waiting for data and the peak memory in GB; {} before the first step."""
        if not self.steps:
            return {}
        elapsed = time.perf_counter() - self.started
        return {
            "train/steps_per_second": self.steps / elapsed,
            "train/examples_per_second": self.steps * self.batch_size / elapsed,
            "train/waiting": self.waited / elapsed,
            "train/memory": peak_memory(self.device) / 1e9,
        }

    def close(self) -> None:
        self.bar.close()


def peak_memory(device: torch.device) -> int:
    """The most memory used so far in bytes: allocated on a CUDA device, or resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # Python does not know it there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
