"""Excerpts cut from tracks by seeking: at random for training, end to end for validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from separate.audio import Info, NonFiniteError, frames_at, read, read_span
from separate.data.examples import Example, Examples
from separate.data.tracks import Track
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
        self.tracks = tracks
        lengths = [frames_at(track.info, sample_rate) for track in tracks]
        longest = max(range(len(tracks)), key=lengths.__getitem__)
        if split == "train" and self.frames > lengths[longest]:
            seconds = lengths[longest] / sample_rate
            raise DataError(
                f"data.excerpt={excerpt} s is longer than every track of {split}: the longest, "
                f"{tracks[longest].name}, has {seconds:.4g} s; use at most data.excerpt={seconds:.4g}"
            )
        refuse_channels([file for track in tracks for file in track.files.items()], channels)
        # example number -> track and place in it: ceil(length / frames) cuts of each track, the last one moved to fit
        cuts = [max(1, -(-length // self.frames)) for length in lengths]
        self.lengths = lengths
        self.ends = np.cumsum(cuts)

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
        start = min(place * self.frames, max(0, self.lengths[track] - self.frames))
        return self._cut(track, start, self.frames)

    @property
    def recordings(self) -> int:
        return len(self.tracks)

    def recording(self, index: int) -> Example:
        return self._cut(index, 0, self.lengths[index])

    def _cut(self, index: int, start: int, frames: int) -> Example:
        track = self.tracks[index]

        def cut(path: Path) -> np.ndarray:
            return read_span(path, track.files[path], start, frames, self.sample_rate, self.channels)

        try:
            sources = np.stack([cut(path) for path in track.sources])
            if track.mixture is None:
                return Example.of_sources(track.name, sources)
            return Example(track.name, cut(track.mixture), sources)
        except NonFiniteError:
            raise all_non_finite([file for track in self.tracks for file in track.files.items()]) from None


def refuse_channels(files: Sequence[tuple[Path, Info]], channels: int) -> None:
    """DataError for files whose channels do not become `channels`."""
    bad = [f"{path}: {info.channels} channels" for path, info in files if info.channels not in (1, channels)]
    if bad and channels != 1:
        raise DataError.of_files(
            f"data.channels={channels} does not fit",
            bad,
            "Mono becomes anything, anything becomes mono with data.channels=1; convert these first otherwise.",
        )


def all_non_finite(files: Sequence[tuple[Path, Info]]) -> DataError:
    """One NaN was met: look through all files that can hold one, so that all are named at once."""
    problems = []
    for path, info in files:
        try:
            for start in range(0, info.frames if info.floating else 0, BLOCK):
                read(path, start, min(BLOCK, info.frames - start))
        except NonFiniteError as error:
            problems.append(str(error))
    return DataError.of_files("files with samples that are no numbers", problems, "Mend or remove them.")
