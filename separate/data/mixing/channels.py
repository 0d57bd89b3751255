"""Gain, loudness, polarity, channel swap, panning and dropout: one channel matrix for each source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from separate.data.example import Example
from separate.data.mixing.augmentation import Augmentation, Parameters, Signals, between, check_bounds
from separate.errors import UsageError


class ChannelAugmentation(ABC):
    """A change of the channel matrices (S, C, C), one for each source: new channels from old channels."""

    @abstractmethod
    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        """The changed matrices.  Draws the same number of random numbers if it is off, so that others keep theirs."""


class ChannelMatrix(Augmentation):
    """Multiply the channels of each source by a matrix, the product of all channel augmentations."""

    keys = ("gain", "loudness", "polarity", "swap", "pan", "dropout")
    on_spectrograms = True

    def __init__(self, channels: int, augmentations: Sequence[ChannelAugmentation]) -> None:
        self.channels = channels
        self.augmentations = augmentations

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters:
        matrices = np.tile(np.eye(self.channels, dtype=np.float32), (len(example.sources), 1, 1))
        for augmentation in self.augmentations:
            matrices = augmentation.change(matrices, rng, example).astype(np.float32)
        return {"matrices": matrices}

    @staticmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        return signals.change(lambda sources: multiply(parameters["matrices"], sources))


def multiply(matrices: Tensor, sources: Tensor) -> Tensor:
    """New channels from old ones, (B, S, C, C), (B, S, C, ...) -> (B, S, C, ...)."""
    weights = matrices.reshape(*matrices.shape, *[1] * (sources.ndim - 3))
    return (weights * sources.unsqueeze(2)).sum(dim=3)


@dataclass(frozen=True)
class Gain(ChannelAugmentation):
    """A gain in dB of each source, uniform in [min, max]."""

    bounds: Sequence[float] | None

    def __post_init__(self) -> None:
        check_bounds("gain", self.bounds)

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        numbers = rng.random(len(matrices))
        return matrices * _column(10 ** (between(self.bounds, numbers) / 20)) if self.bounds else matrices


@dataclass(frozen=True)
class Loudness(ChannelAugmentation):
    """Set each source to a loudness in LUFS, uniform in [min, max], by the loudness of its whole track."""

    bounds: Sequence[float] | None

    def __post_init__(self) -> None:
        check_bounds("loudness", self.bounds)

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        numbers = rng.random(len(matrices))
        if not self.bounds:
            return matrices
        assert example.levels is not None
        gains = np.where(np.isfinite(example.levels), between(self.bounds, numbers) - example.levels, 0.0)  # dB
        return matrices * _column(10 ** (gains / 20))


@dataclass(frozen=True)
class Polarity(ChannelAugmentation):
    """Invert each source with a probability."""

    probability: float

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        return matrices * _column(np.where(rng.random(len(matrices)) < self.probability, -1, 1))


@dataclass(frozen=True)
class Swap(ChannelAugmentation):
    """Swap left and right of each source with a probability."""

    probability: float
    channels: int

    def __post_init__(self) -> None:
        _check_stereo("swap", self.probability, self.channels)

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        return np.where(_column(rng.random(len(matrices)) < self.probability), matrices[:, ::-1], matrices)


@dataclass(frozen=True)
class Pan(ChannelAugmentation):
    """Pan each source with constant power.  width: the largest change, from 0 (none) to 1 (one channel alone)."""

    width: float
    channels: int

    def __post_init__(self) -> None:
        _check_stereo("pan", self.width, self.channels)

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        numbers = rng.random(len(matrices))
        if not self.width:
            return matrices
        angle = (1 + self.width * (2 * numbers - 1)) * np.pi / 4  # a quarter circle, its middle is the centre
        return matrices * (np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, :, None])


@dataclass(frozen=True)
class Dropout(ChannelAugmentation):
    """Silence each source with a probability; one of them always stays."""

    probability: float

    def change(self, matrices: np.ndarray, rng: np.random.Generator, example: Example) -> np.ndarray:
        dropped = rng.random(len(matrices)) < self.probability
        kept = int(rng.integers(len(matrices)))  # stays if all would be silent
        dropped[kept] &= not dropped.all()
        return matrices * _column(~dropped)


def _check_stereo(key: str, value: float, channels: int) -> None:
    if value and channels != 2:
        raise UsageError(f"augment.{key} needs stereo, and data.channels={channels}; set it to 0")


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]
