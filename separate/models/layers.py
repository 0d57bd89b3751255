"""Layers that several networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# of masks (B, S, C, F, N); softmax shares each bin out among the sources
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda masks: masks.softmax(dim=1),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "none": lambda masks: masks,
}


def mask_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The mask activation of that name; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name}; choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def decibels(spectrogram: Tensor, floor: float) -> Tensor:
    """Magnitude of a complex spectrogram in dB re 1, not below `floor` dB."""
    return 20 * torch.log10(spectrogram.abs().clamp_min(10 ** (floor / 20)))
