"""The interface of a data set: numbered examples for training and validation, whole recordings for evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from separate.data.storage.reading import Reader, Region


@dataclass
class Example:
    """The signals of one excerpt in their stored encoding.

    track: the name of its track, or names joined by +.
    sources: S signals (C, T) in float32, float16 or int16; or spectrograms (C, N, F) in complex64 or (C, N, F, 2) in
    float16.
    recorded: the mixture, or None if it is the sum of the sources.
    scale: the value of one step of an int16 sample.  frames: T, if these are spectrograms.
    levels: the loudness in LUFS of the whole track of each source, if known.
    rejected: the number of excerpts that were drawn and rejected before this one.
    """

    track: str
    sources: Sequence[np.ndarray] | np.ndarray
    recorded: np.ndarray | None = None
    scale: float = 1.0
    frames: int | None = None
    levels: Sequence[float] | None = None
    rejected: int = 0

    @property
    def samples(self) -> np.ndarray:
        """The mixture and its sources, (1 + S, C, T) float32; not for spectrograms."""
        assert self.frames is None
        scale = np.float32(self.scale)
        sources = np.stack([source * scale if source.dtype == np.int16 else source for source in self.sources])
        if self.recorded is None:
            mixture = sources.sum(axis=0)
        else:
            mixture = self.recorded * scale if self.recorded.dtype == np.int16 else self.recorded
        return np.stack([mixture, *sources]).astype(np.float32)


class Examples(ABC):
    """One split of a data set.  `len()` is the number of examples in one pass.

    sources: their names.  sample_rate in Hz.  excerpt: the length of an example in seconds; `frames` in samples.
    """

    def __init__(self, sources: list[str], sample_rate: int, channels: int, excerpt: float) -> None:
        self.sources = sources
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = round(excerpt * sample_rate)

    @abstractmethod
    def __len__(self) -> int: ...

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The numbers of all examples in the order of one pass, (len(self),)."""
        return rng.permutation(len(self))

    def prefetch(self, order: np.ndarray, position: int) -> None:
        """Start to download the files of the next examples, those from `position` on in this order."""
        return

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """A training example of `frames` samples, a function of (index, rng) alone."""

    @abstractmethod
    def fixed(self, index: int) -> Example:
        """A validation example of `frames` samples, the same at every call."""

    @property
    @abstractmethod
    def recordings(self) -> int:
        """The number of whole recordings."""

    @abstractmethod
    def recording(self, index: int) -> Example:
        """A whole recording at the rate and channels of the data set."""


class FileExamples(Examples):
    """Examples from files, which `reader` reads."""

    reader: Reader

    @abstractmethod
    def regions(self, mixtures: bool = True) -> list[Region]:
        """The regions of all tracks: their sources in order and, if `mixtures`, their mixtures."""

    @abstractmethod
    def groups(self) -> list[str]:
        """The source or pool of each of `regions(mixtures=False)`."""
