"""The precision of sums, the block size of long ones, and decisions that wait for a device."""

from __future__ import annotations

import torch
from torch import Tensor

CACHED = 2**20  # numbers of a block on a CPU, few enough to stay in its cache
LARGE = 2**26  # elsewhere, where many kernels cost more


def precise(x: Tensor) -> torch.dtype:
    """float64 for what is float64, float32 for all else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> torch.dtype:
    """float64, or float32 on MPS, which has no other."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def settled(condition: Tensor) -> bool:
    """The truth value of a condition on a device.  The host waits for it, so no training step may ask."""
    return bool(condition)


def block(x: Tensor, numbers: int) -> int:
    """How many steps of a pass over x make a block, with so many numbers in each; at least 1."""
    return max(1, (CACHED if x.device.type == "cpu" else LARGE) // numbers)
