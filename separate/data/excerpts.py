"""Excerpts cut from tracks by seeking: at random for training, end to end for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from separate.audio import NonFiniteError, read
from separate.data.examples import Example, Examples
from separate.data.reading import Reader, Region, Span
from separate.data.tracks import Piece, Tracks
from separate.errors import DataError

Read = Callable[[Sequence[Span], int], np.ndarray]  # of a Reader: spans and frames -> a source
BLOCK = 2**20  # samples read at a time when files are searched for NaN


class Excerpts(Examples):
    """Tracks of any length and sample rate; those shorter than an excerpt are padded with silence at their end.

    coherent: the probability that the sources of a training example are those of one moment of one track; otherwise
    each is of a track and a moment of its own.  grid: excerpts begin at multiples of so many samples.
    """

    def __init__(
        self,
        sources: list[str],
        sample_rate: int,
        channels: int,
        excerpt: float,
        tracks: Tracks,
        split: str,
        reader: Reader,
        coherent: float = 1.0,
        grid: int = 1,
    ) -> None:
        super().__init__(sources, sample_rate, channels, excerpt)
        self.tracks = tracks
        self.reader = reader
        self.coherent = coherent
        self.grid = grid
        self.lengths = np.array([track.length(sample_rate) for track in tracks], np.int64)
        longest = int(self.lengths.argmax())
        if split == "train" and self.frames > self.lengths[longest]:
            seconds = self.lengths[longest] / sample_rate
            raise DataError(
                f"data.excerpt={excerpt} s is longer than every track of {split}: the longest, "
                f"{tracks[longest].name}, has {seconds:.4g} s; use at most data.excerpt={seconds:.4g}"
            )
        refuse_channels(self.tracks.files, channels)
        # example number -> track and place in it: ceil(length / frames) cuts of each track, the last one moved to fit
        self.ends = np.cumsum(np.maximum(1, -(-self.lengths // self.frames)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        track = int(np.searchsorted(self.ends, index, side="right"))
        return track, index - (int(self.ends[track - 1]) if track else 0)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        place = self._moment(index, rng)
        if self.coherent >= 1 or rng.random() < self.coherent:
            return self._cut(place, self.frames, self.reader.source)
        others = [self._moment(int(rng.integers(len(self))), rng) for _ in self.sources[1:]]
        order = rng.permutation(len(self.sources))  # so that an example's own track gives each source as often
        places = [[place, *others][number] for number in order]
        sources, names = [], []
        for number, (track, start) in enumerate(places):
            sources.append(self._signal(track, number, start, self.frames, self.reader.source))
            names.append(self.tracks[track].name)
        frames = self.frames if self.reader.spectral else None
        return Example("+".join(names), sources, None, self.reader.scale, frames)

    def _moment(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """The track of an example, and a start in it."""
        track, _ = self._place(index)
        last = max(0, int(self.lengths[track]) - self.frames)
        return track, self.grid * int(rng.integers(last // self.grid + 1))

    def fixed(self, index: int) -> Example:
        track, place = self._place(index)
        start = min(place * self.frames, max(0, int(self.lengths[track]) - self.frames))
        return self._cut((track, start), self.frames, self.reader.place)

    @property
    def recordings(self) -> int:
        return len(self.tracks)

    def recording(self, index: int) -> Example:
        return self._cut((index, 0), int(self.lengths[index]), self.reader.place)

    def _cut(self, place: tuple[int, int], frames: int, read: Read) -> Example:
        """All sources of one moment of one track, and the mixture where it has one of its own."""
        track, start = place
        sources = [self._signal(track, number, start, frames, read) for number in range(len(self.sources))]
        recorded = self._signal(track, len(self.sources), start, frames, read) if self.tracks.mixed[track] else None
        spectra = read == self.reader.source and self.reader.spectral
        return Example(self.tracks.names[track], sources, recorded, self.reader.scale, frames if spectra else None)

    def _signal(self, track: int, number: int, start: int, frames: int, read: Read) -> np.ndarray:
        """Signal `number` of a track (its mixture comes after its sources), `frames` samples from `start`."""
        length = int(self.lengths[track])
        first = round(float(self.tracks.starts[track]) * self.sample_rate)
        region = Region(self.tracks.signal(track, number), first, length)
        try:
            return read([Span(region, start, 0, min(frames, length - start))], frames)
        except NonFiniteError:
            raise all_non_finite(self.tracks.files) from None


def refuse_channels(files: Iterable[Piece], channels: int) -> None:
    """DataError for files whose channels do not become `channels`."""
    bad = [f"{path}: {info.channels} channels" for path, info in files if info.channels not in (1, channels)]
    if bad and channels != 1:
        raise DataError.of_files(
            f"data.channels={channels} does not fit",
            bad,
            "Mono becomes anything, anything becomes mono with data.channels=1; convert these first otherwise.",
        )


def all_non_finite(files: Iterable[Piece]) -> DataError:
    """One NaN was met: look through all files that can hold one, so that all are named at once."""
    problems = []
    for path, info in files:
        try:
            for start in range(0, info.frames if info.floating else 0, BLOCK):
                read(path, start, min(BLOCK, info.frames - start))
        except NonFiniteError as error:
            problems.append(str(error))
    return DataError.of_files("files with samples that are no numbers", problems, "Mend or remove them.")
