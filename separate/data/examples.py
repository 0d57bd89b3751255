"""The contract of a data set: numbered examples for training and validation, whole recordings for evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass
class Example:
    """track: what it was cut from, for people; mixture: (C, T) float32; sources: (S, C, T) float32."""

    track: str
    mixture: np.ndarray
    sources: np.ndarray

    @classmethod
    def of_sources(cls, track: str, sources: np.ndarray) -> Example:
        """The mixture is the sum of the sources."""
        return cls(track, sources.sum(axis=0), sources)


class Examples(ABC):
    """One split of a data set.

    sources: their names; sample_rate in Hz; channels; excerpt: seconds of an example, `frames` in samples.
    `len()` is the number of examples in one pass.
    """

    def __init__(self, sources: list[str], sample_rate: int, channels: int, excerpt: float) -> None:
        self.sources = sources
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = round(excerpt * sample_rate)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """A training example of `frames` samples: a function of (index, rng) alone."""

    @abstractmethod
    def fixed(self, index: int) -> Example:
        """A validation example of `frames` samples, the same at every call."""

    @property
    @abstractmethod
    def recordings(self) -> int:
        """The number of whole recordings."""

    @abstractmethod
    def recording(self, index: int) -> Example:
        """A whole recording, at the data set's rate and channels."""
