"""Excerpts cut from tracks by seeking: at random for training, end to end for validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from separate.audio import NonFiniteError, read
from separate.data.examples import Example, Examples
from separate.data.reading import Reader
from separate.data.tracks import Piece, Track, Tracks
from separate.errors import DataError

BLOCK = 2**20  # samples read at a time when files are searched for NaN


class Excerpts(Examples):
    """Tracks of any length and sample rate; those shorter than an excerpt are padded with silence at their end."""

    def __init__(
        self,
        sources: list[str],
        sample_rate: int,
        channels: int,
        excerpt: float,
        tracks: Sequence[Track],
        split: str,
    ) -> None:
        super().__init__(sources, sample_rate, channels, excerpt)
        self.reader = Reader(sample_rate, channels)
        self.tracks = Tracks(tracks)
        lengths = [track.length(sample_rate) for track in tracks]
        longest = max(range(len(tracks)), key=lengths.__getitem__)
        if split == "train" and self.frames > lengths[longest]:
            seconds = lengths[longest] / sample_rate
            raise DataError(
                f"data.excerpt={excerpt} s is longer than every track of {split}: the longest, "
                f"{tracks[longest].name}, has {seconds:.4g} s; use at most data.excerpt={seconds:.4g}"
            )
        refuse_channels(self.tracks.files, channels)
        # example number -> track and place in it: ceil(length / frames) cuts of each track, the last one moved to fit
        self.lengths = np.array(lengths, np.int64)
        self.ends = np.cumsum(np.maximum(1, -(-self.lengths // self.frames)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        track = int(np.searchsorted(self.ends, index, side="right"))
        return track, index - (int(self.ends[track - 1]) if track else 0)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        track, _ = self._place(index)
        start = int(rng.integers(max(0, self.lengths[track] - self.frames) + 1))
        return self._cut(track, start, self.frames)

    def fixed(self, index: int) -> Example:
        track, place = self._place(index)
        start = min(place * self.frames, max(0, int(self.lengths[track]) - self.frames))
        return self._cut(track, start, self.frames)

    @property
    def recordings(self) -> int:
        return len(self.tracks)

    def recording(self, index: int) -> Example:
        return self._cut(index, 0, int(self.lengths[index]))

    def _cut(self, index: int, start: int, frames: int) -> Example:
        track = self.tracks[index]
        first = track.first(self.sample_rate) + start
        there = min(frames, int(self.lengths[index]) - start)  # what lies past a track in its file is not its own

        def cut(signal: tuple[Piece, ...]) -> np.ndarray:
            audio = self.reader.read(signal, first, there)
            return audio if there == frames else np.pad(audio, ((0, 0), (0, frames - there)))

        try:
            sources = np.stack([cut(signal) for signal in track.sources])
            if track.mixture is None:
                return Example.of_sources(track.name, sources)
            return Example(track.name, cut(track.mixture), sources)
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
