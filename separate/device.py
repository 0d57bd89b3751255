"""The device to compute on."""

from __future__ import annotations

import torch

from separate.errors import UsageError


def choose_device(name: str | torch.device) -> torch.device:
    """auto: CUDA, else MPS, else the CPU; or a device by name.  UsageError for an unknown or missing device."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name} is unknown; choose from auto, cpu, cuda, cuda:N, mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UsageError(f"device={name} is not on this machine; use device=auto")
    return device
