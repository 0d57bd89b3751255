"""What is changed in the sources of a training example: drawn beside the data, applied to the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from separate.config import AugmentConfig
from separate.errors import UsageError


class Augment:
    """Gain, polarity, channels and dropout: for each source one matrix (C, C) that maps its channels to new ones.

    Being linear and without memory, they are the same for samples and for spectrograms.  Which numbers are drawn does
    not depend on which changes are asked for, so that adding one leaves the others as they were.
    """

    def __init__(self, options: AugmentConfig, channels: int) -> None:
        for name in ("swap", "pan"):
            if channels != 2 and getattr(options, name):
                raise UsageError(f"augment.{name} is of left and right, and data.channels={channels}; set it to 0")
        self.options = options
        self.channels = channels

    @property
    def active(self) -> bool:
        o = self.options
        return bool(o.gain or o.loudness or o.polarity or o.swap or o.pan or o.dropout)

    def draw(self, rng: np.random.Generator, sources: int, levels: Sequence[float] | None = None) -> np.ndarray:
        """(S, C, C) float32.  levels: LUFS of each source, -inf for a silent one."""
        gains, loudness, signs, sides, places, silent = rng.random((6, sources))
        kept = int(rng.integers(sources))  # the one that stays where all would be silent
        options, matrices = self.options, np.tile(np.eye(self.channels, dtype=np.float32), (sources, 1, 1))
        if options.gain:
            matrices *= _column(10 ** (_between(options.gain, gains) / 20))
        if options.loudness:
            assert levels is not None
            change = np.where(np.isfinite(levels), _between(options.loudness, loudness) - levels, 0.0)
            matrices *= _column(10 ** (change / 20))
        matrices *= _column(np.where(signs < options.polarity, -1, 1))
        if options.swap:
            matrices = np.where(_column(sides < options.swap), matrices[:, ::-1], matrices)
        if options.pan:
            angle = (1 + options.pan * (2 * places - 1)) * np.pi / 4  # a quarter circle, its middle is the centre
            matrices *= np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, :, None]
        dropped = silent < options.dropout
        dropped[kept] &= not dropped.all()
        return (matrices * _column(~dropped)).astype(np.float32)


def _between(bounds: Sequence[float], share: np.ndarray) -> np.ndarray:
    low, high = bounds
    return low + (high - low) * share


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]
