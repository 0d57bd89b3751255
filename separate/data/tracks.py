"""Tracks: which files, added up, are the sources and the mixture of a recording; packed, for a list of any length."""

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


Signal = tuple[Piece, ...]  # files that add up; none: silence


@dataclass(frozen=True)
class Track:
    """One recording: its sources' signals in order, its mixture's where it has one (else it is their sum).

    start, duration: in seconds, where the track is a part of its files; a duration of None goes to their end.
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
        """The sample of the files, at this rate, that the track begins with."""
        return round(self.start * sample_rate)

    def length(self, sample_rate: int) -> int:
        """Samples at this rate; a file that ends early is silent from there on."""
        there = max((frames_at(piece.info, sample_rate) for piece in self.pieces), default=0) - self.first(sample_rate)
        return there if self.duration is None else min(round(self.duration * sample_rate), there)


Item = TypeVar("Item")


class Packed(Sequence[Item]):
    """A sequence that lies in a few arrays, which forked processes share, and is given out one item at a time."""

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
        self.ends = _ends(map(len, encoded))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def _item(self, index: int) -> str:
        return self.bytes[self.ends[index] : self.ends[index + 1]].tobytes().decode(errors="surrogateescape")


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

    def are(self, subtype: str, sample_rate: int, channels: int) -> bool:
        """Whether all are of this sample format, rate and number of channels."""
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
    """Tracks of equally many sources."""

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.sources = len(tracks[0].sources) if tracks else 0
        pieces = {piece.path: piece for track in tracks for piece in track.pieces}
        rows = {path: row for row, path in enumerate(pieces)}
        self.files = Files(list(pieces.values()))
        self.names = Strings([track.name for track in tracks])
        signals = [signal for track in tracks for signal in (*track.sources, track.mixture or ())]
        self.members = np.array([rows[piece.path] for signal in signals for piece in signal], np.int32)
        self.ends = _ends(map(len, signals))
        self.mixed = np.array([track.mixture is not None for track in tracks], bool)
        self.starts = np.array([track.start for track in tracks], np.float64)
        self.durations = np.array([np.nan if t.duration is None else t.duration for t in tracks], np.float64)

    def __len__(self) -> int:
        return len(self.mixed)

    def firsts(self, sample_rate: int) -> np.ndarray:
        """`Track.first` of each."""
        return np.round(self.starts * sample_rate).astype(np.int64)

    def lengths(self, sample_rate: int) -> np.ndarray:
        """`Track.length` of each."""
        frames = self.files.frames * sample_rate // self.files.rates
        longest = np.maximum.reduceat(frames[self.members], self.ends[: -1 : self.sources + 1])
        there = longest - self.firsts(sample_rate)
        wanted = np.round(np.nan_to_num(self.durations, nan=2**40) * sample_rate).astype(np.int64)
        return np.minimum(wanted, there)

    def _item(self, index: int) -> Track:
        *sources, mixture = (self.signal(index, number) for number in range(self.sources + 1))
        duration = float(self.durations[index])
        return Track(
            self.names[index],
            tuple(sources),
            mixture if self.mixed[index] else None,
            float(self.starts[index]),
            None if np.isnan(duration) else duration,
        )

    def signal(self, track: int, number: int) -> Signal:
        """Source `number` of a track; its mixture comes after its sources."""
        row = track * (self.sources + 1) + number
        return tuple(self.files[file] for file in self.members[self.ends[row] : self.ends[row + 1]])


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """Where each of consecutive stretches of these lengths begins, and where the last one ends."""
    return np.array(list(accumulate(lengths, initial=0)), np.int64)
