"""Precision of sums, autocast, block sizes, and conditions on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

CACHED = 2**20  # numbers of a block on a CPU: they fit into its cache
LARGE = 2**26  # numbers of a block on other devices, where few large kernels are faster


def result_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 tensors, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sum_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of x; there is none on the meta device."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def wait_for(condition: Tensor) -> bool:
    """A condition on a device as a bool.  The host waits for the device, so do not use it in training steps."""
    return bool(condition)


def block(x: Tensor, numbers: int) -> int:
    """The number of steps in one block of a computation over x, at least 1.  numbers: the numbers in each step."""
    return max(1, (CACHED if x.device.type == "cpu" else LARGE) // numbers)
