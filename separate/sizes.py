"""Check of the size of a network before memory is allocated for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from separate.errors import MISFIT, UsageError

MOST_PARTS = 100_000  # layers and weights together
LONGEST = 600  # seconds that a network may compute for one second of input, e.g. by padding to patches


def check_size(make: Callable[[], Any], sample_rate: int, hop: int, stored: Mapping[str, Tensor] | None = None) -> None:
    """UsageError for a network that is too large, before memory is allocated for it.

    make: builds the network; called on torch's meta device, where tensors have shapes but no values.
    sample_rate: Hz.  hop: of the STFT, in samples.
    stored: the weights that will be loaded; they must have the names and shapes of the network's.  Without them, the
    network must fit into the memory of this machine.
    """
    parts = MOST_PARTS if stored is None else 1000 + 20 * len(stored)
    elements = _memory() / 4 if stored is None else sum(tensor.numel() for tensor in stored.values())
    with torch.device("meta"), _limit_registration(parts, elements, stored is not None):
        network = make()
    if stored is not None and isinstance(network, nn.Module):
        _compare({f"network.{name}": tensor for name, tensor in network.state_dict().items()}, stored)
    second = max(1, sample_rate if "waveforms" in getattr(network, "provides", ()) else sample_rate // hop)
    if hasattr(network, "valid_length") and (computed := network.valid_length(second)) > LONGEST * second:
        raise UsageError(
            f"model: the network computes {computed / second:,.0f} seconds for one second of input, and at most "
            f"{LONGEST} are allowed; use smaller patches and kernels, or fewer levels"
        )


@contextmanager
def _limit_registration(parts: float, elements: float, stored: bool) -> Iterator[None]:
    """UsageError as soon as modules register more parts or weights.  elements: weights.  stored: from a checkpoint."""
    where, holder = (MISFIT, "the checkpoint") if stored else ("model", "the machine")
    seen: dict[int, nn.Module | Tensor] = {}  # weight *= 2 registers a weight again
    weights = 0

    def count(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal weights
        if part is None or id(part) in seen:
            return
        seen[id(part)] = part
        weights += part.numel() if isinstance(part, Tensor) else 0
        if len(seen) > parts or weights > elements:
            raise UsageError(
                f"{where}: the network has at least {len(seen):,} layers and {weights:,} weights, more than {holder} "
                f"holds ({elements:,.0f} weights); use fewer or smaller layers"
            )

    hooks = [
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _compare(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """UsageError for names or shapes that differ."""
    for name, tensor in wanted.items():
        if name not in stored:
            raise UsageError(f"{MISFIT}: {name} is missing")
        if tensor.shape != stored[name].shape:
            raise UsageError(f"{MISFIT}: {name} is {tuple(stored[name].shape)} and must be {tuple(tensor.shape)}")
    if others := [name for name in stored if name not in wanted]:
        raise UsageError(f"{MISFIT}: the network has no {others[0]}")


def _memory() -> float:
    """Bytes of memory of this machine; infinite if the system does not report it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf
