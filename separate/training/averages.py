"""Exponential moving averages of the weights, per step and per epoch, in float32 on the device of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RAW = "raw"  # the weights that the optimizer updates


@dataclass
class Average:
    """One moving average.  decay: factor of the earlier weights in each update; count: number of updates.

    tensors: {name: value in float32} of the floating-point parameters and buffers of a module.
    """

    decay: float
    tensors: dict[str, Tensor]
    count: int = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """average += weight (weights - average), weight = (1 - decay) / (1 - decay^count).

        A moving average with the bias correction of Adam (Kingma and Ba, 2015, section 3): an update counts in
        proportion to decay^age, the proportions add up to 1, and the initial weights do not count.
        """
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)
        torch._foreach_lerp_(list(self.tensors.values()), [weights[name].float() for name in self.tensors], weight)


class Averages:
    """The averages of a module by name: `ema0.999` for each step, `ema_epoch0.9` for each epoch.

    They average parameters and floating-point buffers (running statistics).  Other buffers (counts) keep the values of
    the module.  `raw` names the module's own weights.
    """

    def __init__(self, module: nn.Module, per_step: Sequence[float] = (), per_epoch: Sequence[float] = ()) -> None:
        self.module = module
        self.per_step = {f"ema{decay:.12g}": self._average(decay) for decay in per_step}
        self.per_epoch = {f"ema_epoch{decay:.12g}": self._average(decay) for decay in per_epoch}

    def _average(self, decay: float) -> Average:
        floats = {name: tensor for name, tensor in self.module.state_dict().items() if tensor.is_floating_point()}
        return Average(decay, {name: tensor.detach().float().clone() for name, tensor in floats.items()})

    @property
    def all(self) -> dict[str, Average]:
        return {**self.per_step, **self.per_epoch}

    @property
    def sets(self) -> list[str]:
        """The names of the sets of weights to validate: raw, and each average with an update."""
        return [RAW, *(name for name, average in self.all.items() if average.count)]

    def after_step(self, statistics: Mapping[str, Tensor] | None = None) -> None:
        """Add the weights after an applied step.  statistics: {name: buffer} in place of the module's."""
        if self.per_step:
            weights = {**self.module.state_dict(), **(statistics or {})}
            for average in self.per_step.values():
                average.update(weights)

    def after_epoch(self, epoch: int) -> None:
        """Add the weights after the last step of `epoch` (from 0); a second call for this epoch changes nothing."""
        for average in self.per_epoch.values():
            if average.count <= epoch:
                average.update(self.module.state_dict())

    @contextmanager
    def swapped(self, name: str) -> Iterator[None]:
        """Exchange the weights of the module with those of an average, and exchange them back at the end.

        The values are copied in place, because cuDNN needs the weights of an LSTM in one block of memory.
        """
        names = [] if name == RAW else list(self.all[name].tensors)
        self._swap(name, names)
        try:
            yield
        finally:
            self._swap(name, names[::-1])  # in reverse order, because several names may share a tensor

    @torch.no_grad()
    def _swap(self, name: str, keys: Sequence[str]) -> None:
        weights = self.module.state_dict()
        for key in keys:
            average = self.all[name].tensors[key]
            kept = average.clone()
            average.copy_(weights[key])
            weights[key].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {name: {"count": average.count, "tensors": average.tensors} for name, average in self.all.items()}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        for name, average in self.all.items():
            average.count = saved[name]["count"]
            for key, tensor in average.tensors.items():
                tensor.copy_(saved[name]["tensors"][key])


def decays(value: float | Sequence[float] | None) -> list[float]:
    """The decays in the value of `ema` or `ema_epoch`, without duplicates."""
    if value is None:
        return []
    return list(dict.fromkeys(value)) if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]
