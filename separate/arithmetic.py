"""The precision of sums, the size of the blocks that long ones are taken by, and decisions that wait for a device."""

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
    """A truth value that decides what comes next, so that the host waits for the device: in no step of a training."""
    return bool(condition)


def block(x: Tensor, numbers: int) -> int:
    """How many steps of a pass over x make a block, with so many numbers in each; at least 1."""
    return max(1, (CACHED if x.device.type == "cpu" else LARGE) // numbers)
