"""Gradient clipping: by value, by norm, and by a percentile of earlier norms (AutoClip, Seetharaman et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from separate.config import TrainerConfig


def clip_gradients(parameters: Iterable[Tensor], options: TrainerConfig, norms: Sequence[float]) -> Tensor:
    """Clip each element of the gradients, then their norm.  Returns the norm () before the latter.

    norms: of the earlier steps in ascending order, for `clip: auto`.
    """
    parameters = list(parameters)
    if options.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, options.clip_value)
    return torch.nn.utils.clip_grad_norm_(parameters, largest_norm(options, norms))


def largest_norm(options: TrainerConfig, norms: Sequence[float]) -> float:
    """The norm to clip to, infinity for none.  The first step of AutoClip has no history and is not clipped."""
    if options.clip == "auto":
        return percentile(norms, options.clip_percentile) if norms else math.inf
    return options.clip or math.inf


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The percentile of sorted numbers, interpolated linearly between two of them."""
    place = percent / 100 * (len(ascending) - 1)
    below, above = ascending[math.floor(place)], ascending[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))
