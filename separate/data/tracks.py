"""Tracks: the files of the sources and the mixture of each recording, packed in arrays."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeVar, overload

import numpy as np

from separate.audio import Info, frames_at


class Piece(NamedTuple):
    """A file and its header."""

    path: str
    info: Info


Signal = tuple[Piece, ...]  # the sum of these files; no file is silence


@dataclass(frozen=True)
class Track:
    """One recording.  mixture: None for the sum of the sources.

    start, duration: the part of the files in seconds; a duration of None extends to their end.
    """

    name: str
    sources: tuple[Signal, ...]
    mixture: Signal | None = None
    start: float = 0.0
    duration: float | None = None

    @property
    def signals(self) -> tuple[Signal, ...]:
        return self.sources if self.mixture is None else (*self.sources, self.mixture)

    @property
    def pieces(self) -> list[Piece]:
        return [piece for signal in self.signals for piece in signal]

    def first(self, sample_rate: int) -> int:
        """The first sample of the track in its files, at this rate."""
        return round(self.start * sample_rate)

    def length(self, sample_rate: int) -> int:
        """Samples at this rate, up to the end of the longest file."""
        available = max((frames_at(p.info, sample_rate) for p in self.pieces), default=0) - self.first(sample_rate)
        return available if self.duration is None else min(round(self.duration * sample_rate), available)


Item = TypeVar("Item")


class Packed(Sequence[Item]):
    """A sequence stored in a few arrays, which forked processes share; items are created on access."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._item(number) for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(index)
        return self._item(number % len(self))

    @abstractmethod
    def _item(self, index: int) -> Item: ...


class Strings(Packed[str]):
    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode(errors="surrogateescape") for string in strings]
        self.bytes = np.frombuffer(bytearray(b"".join(encoded)), np.uint8)
        self.offsets = _offsets(map(len, encoded))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _item(self, index: int) -> str:
        return self.bytes[self.offsets[index] : self.offsets[index + 1]].tobytes().decode(errors="surrogateescape")


class Files(Packed[Piece]):
    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.paths = Strings([piece.path for piece in pieces])
        self.subtypes = sorted({piece.info.subtype for piece in pieces})
        number = {subtype: index for index, subtype in enumerate(self.subtypes)}
        self.frames = np.array([piece.info.frames for piece in pieces], np.int64)
        self.rates = np.array([piece.info.sample_rate for piece in pieces], np.int32)
        self.channels = np.array([piece.info.channels for piece in pieces], np.int16)
        self.kinds = np.array([number[piece.info.subtype] for piece in pieces], np.uint8)

    def __len__(self) -> int:
        return len(self.frames)

    def all_are(self, subtype: str, sample_rate: int, channels: int) -> bool:
        """Whether all files have this sample format, rate and number of channels."""
        same = (self.rates == sample_rate) & (self.channels == channels)
        return self.subtypes == [subtype] and bool(same.all())

    def _item(self, index: int) -> Piece:
        info = Info(
            int(self.frames[index]),
            int(self.rates[index]),
            int(self.channels[index]),
            self.subtypes[self.kinds[index]],
        )
        return Piece(self.paths[index], info)


class Tracks(Packed[Track]):
    """Tracks with the same number of sources."""

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.source_count = len(tracks[0].sources) if tracks else 0
        pieces = {piece.path: piece for track in tracks for piece in track.pieces}
        rows = {path: row for row, path in enumerate(pieces)}
        self.files = Files(list(pieces.values()))
        self.names = Strings([track.name for track in tracks])
        signals = [signal for track in tracks for signal in (*track.sources, track.mixture or ())]
        self.members = np.array([rows[piece.path] for signal in signals for piece in signal], np.int32)
        self.offsets = _offsets(map(len, signals))
        self.has_mixture = np.array([track.mixture is not None for track in tracks], bool)
        self.starts = np.array([track.start for track in tracks], np.float64)
        self.durations = np.array([np.nan if t.duration is None else t.duration for t in tracks], np.float64)

    def __len__(self) -> int:
        return len(self.has_mixture)

    def firsts(self, sample_rate: int) -> np.ndarray:
        """`Track.first` of each track."""
        return np.round(self.starts * sample_rate).astype(np.int64)

    def lengths(self, sample_rate: int) -> np.ndarray:
        """`Track.length` of each track."""
        frames = self.files.frames * sample_rate // self.files.rates
        longest = np.maximum.reduceat(frames[self.members], self.offsets[: -1 : self.source_count + 1])
        available = longest - self.firsts(sample_rate)
        wanted = np.round(np.nan_to_num(self.durations, nan=2**40) * sample_rate).astype(np.int64)
        return np.minimum(wanted, available)

    def _item(self, index: int) -> Track:
        *sources, mixture = (self.signal(index, number) for number in range(self.source_count + 1))
        duration = float(self.durations[index])
        return Track(
            self.names[index],
            tuple(sources),
            mixture if self.has_mixture[index] else None,
            float(self.starts[index]),
            None if np.isnan(duration) else duration,
        )

    def signal(self, track: int, number: int) -> Signal:
        """Source `number` of a track; the mixture follows the sources."""
        row = track * (self.source_count + 1) + number
        return tuple(self.files[file] for file in self.members[self.offsets[row] : self.offsets[row + 1]])


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    """The start of each of consecutive ranges of these lengths, and the end of the last one."""
    return np.array(list(accumulate(lengths, initial=0)), np.int64)
