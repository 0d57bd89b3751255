"""Excerpts of tracks: at random for training, consecutive for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from separate.audio import NonFiniteError, read, shown
from separate.data.example import Example, FileExamples
from separate.data.mixing.loudness import LoudnessIndex, integrated
from separate.data.storage.reading import Reader, Region, Span
from separate.data.tracks import Files, Piece, Tracks
from separate.errors import DataError

if TYPE_CHECKING:
    from separate.data.layouts.base import TrackLayout

Read = Callable[[Sequence[Span], int], np.ndarray]  # of a Reader: spans and frames -> a source
TRIES = 100  # positions drawn until the sources are audible
BLOCK = 2**20  # samples read at a time when files are searched for NaN


class Excerpts(FileExamples):
    """Excerpts of tracks of any length and sample rate; a track shorter than an excerpt is padded with silence.

    With the probability `layout.coherent` a training example takes all sources from the same time of one track, else
    each from a random track and time.  Positions are drawn until every source is audible in a share
    `layout.min_activity` of the excerpt, at most TRIES times.
    shift: the largest shift of each source of a coherent example in seconds.  grid: excerpts begin at multiples of this
    number of samples.  index: set for `min_activity` and for the loudness of sources.
    """

    index: LoudnessIndex | None = None

    def __init__(
        self, layout: TrackLayout, split: str, tracks: Tracks, reader: Reader, shift: float = 0.0, grid: int = 1
    ) -> None:
        super().__init__(layout.sources, layout.sample_rate, layout.channels, layout.excerpt)
        self.tracks = tracks
        self.reader = reader
        self.coherent = layout.coherent
        self.min_activity = layout.min_activity
        self.shift = shift
        self.grid = grid
        self.firsts, self.lengths = tracks.firsts(self.sample_rate), tracks.lengths(self.sample_rate)
        longest = int(self.lengths.argmax())
        if split == "train" and self.frames > self.lengths[longest]:
            seconds = self.lengths[longest] / self.sample_rate
            raise DataError(
                f"data.excerpt={layout.excerpt} s is longer than every track of {split}: the longest, "
                f"{tracks[longest].name}, has {seconds:.4g} s; use at most data.excerpt={seconds:.4g}"
            )
        refuse_channels(self.tracks.files, self.channels)
        # a track has ceil(length / frames) examples, and the last one ends where the track ends
        self.ends = np.cumsum(np.maximum(1, -(-self.lengths // self.frames)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _track(self, index: int) -> tuple[int, int]:
        """The track of an example and the number of the example in it."""
        track = int(np.searchsorted(self.ends, index, side="right"))
        return track, index - (int(self.ends[track - 1]) if track else 0)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        numbers = range(len(self.sources))
        if self.coherent >= 1 or rng.random() < self.coherent:
            (track, start), rejected = self._draw_position(index, numbers, rng)
            positions = [(track, self._shifted(track, start, rng)) for _ in numbers]
            name = self.tracks.names[track]
        else:
            own = int(rng.integers(len(numbers)))  # the source from the track of example `index`
            indices = [index if number == own else self._another(index, rng) for number in numbers]
            found = [self._draw_position(one, [number], rng) for number, one in enumerate(indices)]
            positions, rejected = [position for position, _ in found], sum(tries for _, tries in found)
            name = "+".join(self.tracks.names[track] for track, _ in positions)
        example = self._cut(positions, self.frames, self.reader.source)
        example.rejected = rejected
        if len(set(positions)) > 1:
            example.track = name
        if self.index is not None:
            example.levels = [
                integrated(self.index.of(self._region_number(track, number)))
                for number, (track, _) in enumerate(positions)
            ]
        return example

    def _draw_position(
        self, index: int, audible: Sequence[int], rng: np.random.Generator
    ) -> tuple[tuple[int, int], int]:
        """(track, start) of an excerpt in which these sources are audible, and the number of rejected positions."""
        track, _ = self._track(index)
        for tries in range(TRIES):
            last = max(0, int(self.lengths[track]) - self.frames)
            start = self.grid * int(rng.integers(last // self.grid + 1))
            if self.index is None or self.min_activity == 0 or tries == TRIES - 1:
                break
            regions = (self._region_number(track, number) for number in audible)
            if all(self.index.activity(region, start, self.frames) >= self.min_activity for region in regions):
                break
            if tries >= TRIES // 2:  # this track may have no such position
                track, _ = self._track(self._another(index, rng))
        return (track, start), tries

    def _another(self, index: int, rng: np.random.Generator) -> int:
        """A random example whose sources may be mixed with those of example `index`."""
        return int(rng.integers(len(self)))

    def _shifted(self, track: int, start: int, rng: np.random.Generator) -> int:
        if self.shift == 0:
            return start
        moved = start + rng.uniform(-self.shift, self.shift) * self.sample_rate
        last = max(0, int(self.lengths[track]) - self.frames)
        return self.grid * round(min(max(moved, 0), last) // self.grid)

    def _region_number(self, track: int, source: int) -> int:
        return track * len(self.sources) + source

    def regions(self, mixtures: bool = True) -> list[Region]:
        return [
            self._region(track, number)
            for track in range(len(self.tracks))
            for number in range(len(self.sources) + (mixtures and bool(self.tracks.has_mixture[track])))
        ]

    def fixed(self, index: int) -> Example:
        track, number = self._track(index)
        start = min(number * self.frames, max(0, int(self.lengths[track]) - self.frames))
        return self._cut([(track, start)] * len(self.sources), self.frames, self.reader.samples)

    @property
    def recordings(self) -> int:
        return len(self.tracks)

    def recording(self, index: int) -> Example:
        return self._cut([(index, 0)] * len(self.sources), int(self.lengths[index]), self.reader.samples)

    def _cut(self, positions: Sequence[tuple[int, int]], frames: int, read: Read) -> Example:
        """Sources from these positions (track, start) and, if all are the same, the mixture if it has a file."""
        sources = [self._signal(track, number, start, frames, read) for number, (track, start) in enumerate(positions)]
        track, start = positions[0]
        recorded = None
        if len(set(positions)) == 1 and self.tracks.has_mixture[track]:
            recorded = self._signal(track, len(sources), start, frames, read)
        spectral = self.reader.spectral and read == self.reader.source
        return Example(self.tracks.names[track], sources, recorded, self.reader.scale, frames if spectral else None)

    def groups(self) -> list[str]:
        return self.sources * len(self.tracks)

    def _signal(self, track: int, number: int, start: int, frames: int, read: Read) -> np.ndarray:
        """`frames` samples from `start` of a track's signal `number`; the mixture follows the sources."""
        region = self._region(track, number)
        try:
            return read([Span(region, start, 0, min(frames, region.length - start))], frames)
        except NonFiniteError as error:
            raise (non_finite_error(self.tracks.files) if self.reader.fetch is None else error) from None

    def _region(self, track: int, number: int) -> Region:
        return Region(self.tracks.signal(track, number), int(self.firsts[track]), int(self.lengths[track]))


def refuse_channels(files: Files, channels: int) -> None:
    """DataError for files that cannot be converted to `channels`."""
    unfit = np.flatnonzero((files.channels != 1) & (files.channels != channels))
    if channels != 1 and len(unfit):
        bad = [f"{shown(files[number].path)}: {files[number].info.channels} channels" for number in unfit.tolist()]
        raise DataError.of_files(
            f"data.channels={channels} does not fit",
            bad,
            "Mono files fit any data.channels, and data.channels=1 fits any files; convert these otherwise.",
        )


def non_finite_error(files: Iterable[Piece]) -> DataError:
    """An error that names all files with NaN or infinity; reads all floating-point files."""
    problems = []
    for path, info in files:
        try:
            for start in range(0, info.frames if info.floating else 0, BLOCK):
                read(path, start, min(BLOCK, info.frames - start))
        except NonFiniteError as error:
            problems.append(str(error))
    return DataError.of_files("files with samples that are not numbers", problems, "Repair or remove them.")
