"""Speakers or classes mixed on the fly: clips of different folders joined with pauses, at levels drawn in dB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from separate.audio import NonFiniteError, frames_at
from separate.data.examples import Example, Examples
from separate.data.excerpts import all_non_finite, refuse_channels
from separate.data.headers import Headers, audio_files, folders_in
from separate.data.layouts import split_folder
from separate.data.reading import Reader
from separate.data.tracks import Files, Piece
from separate.errors import DataError, UsageError, nearest

LEVEL = 0.05  # RMS of the clips of the first speaker
LEAD = 0.3  # seconds, the longest silence before the first clip


def list_pools(
    root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str], interchangeable: bool, headers: Headers
) -> dict[str, list[Piece]]:
    """ROOT/SPLIT/NAME/*.wav: the clips of each speaker or, where sources have names, of each source."""
    folder = split_folder(root, splits, split)
    names = folders_in(folder)
    if not interchangeable:
        missing = [source for source in sources if source not in names]
        if missing:
            raise DataError(
                f"{folder} has no folder for the source {missing[0]}; {nearest(missing[0], names)} (where sources are "
                f"speakers, drawn from all folders, say data.interchangeable=true)"
            )
        names = list(sources)
    paths = {name: audio_files(folder / name) for name in names}
    infos, problems = headers.read([path for clips in paths.values() for path in clips])
    problems += [f"{path}: holds no samples" for path, info in infos.items() if info.frames == 0]
    if problems:
        raise DataError.of_files(f"{len(problems)} bad files in {folder}", problems, "Mend or remove them.")
    pools = {name: [Piece(path, infos[path]) for path in clips] for name, clips in paths.items() if clips}
    if len(pools) < len(sources):
        raise DataError(
            f"{folder} has {len(pools)} speakers with audio and data.sources asks for {len(sources)} at a time; "
            f"the layout is {folder}/SPEAKER/*.wav"
        )
    return pools


class Pools(Examples):
    """Each example: as many different speakers as there are sources, their clips joined until it is full.

    Sources that are not interchangeable each have the pool of their name.
    snr: the levels of all speakers but the first are drawn within +-snr dB of the first;
    pause: seconds between clips, drawn within these bounds; examples: fixed ones in a split that is not trained on.
    """

    def __init__(
        self,
        sources: list[str],
        sample_rate: int,
        channels: int,
        excerpt: float,
        pools: Mapping[str, Sequence[Piece]],
        interchangeable: bool,
        split: str,
        snr: float,
        pause: tuple[float, float],
        examples: int,
    ) -> None:
        super().__init__(sources, sample_rate, channels, excerpt)
        if len(pause) != 2 or not 0 <= pause[0] <= pause[1]:
            raise UsageError(f"data.pause={list(pause)} must be the least and the most seconds, e.g. [0.05,0.25]")
        self.pools = {name: Files(clips) for name, clips in pools.items()}
        for clips in self.pools.values():
            refuse_channels(clips, channels)
        self.reader = Reader(sample_rate, channels)
        self.speakers = sorted(pools)
        self.interchangeable = interchangeable
        self.snr = snr
        self.pause = pause
        self.key = (0, *split.encode())  # of the fixed examples: the same whatever a training is seeded with
        seconds = sum(clip.info.seconds for clips in pools.values() for clip in clips)
        self.examples = max(1, round(seconds / excerpt)) if split == "train" else examples

    def __len__(self) -> int:
        return self.examples

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        names = self.sources
        if self.interchangeable:
            names = [self.speakers[i] for i in rng.choice(len(self.speakers), len(self.sources), replace=False)]
        gains = [0.0, *rng.uniform(-self.snr, self.snr, len(names) - 1)]  # dB
        sources = [self._speak(name, rng) * 10 ** (gain / 20) for name, gain in zip(names, gains, strict=True)]
        return Example.of_sources("+".join(names), np.stack(sources).astype(np.float32))

    def _speak(self, speaker: str, rng: np.random.Generator) -> np.ndarray:
        """One speaker for a whole example, (C, T), every clip at the same RMS."""
        audio = np.zeros((self.channels, self.frames), np.float32)
        clips = self.pools[speaker]
        at = int(rng.uniform(0, LEAD) * self.sample_rate)
        while at < self.frames:
            piece = clips[int(rng.integers(len(clips)))]
            length = frames_at(piece.info, self.sample_rate)
            take = min(length, self.frames - at)
            start = int(rng.integers(length - take + 1))
            try:
                clip = self.reader.read((piece,), start, take)
            except NonFiniteError:
                raise all_non_finite(piece for clips in self.pools.values() for piece in clips) from None
            audio[:, at : at + take] = clip * (LEVEL / (np.sqrt(np.mean(clip**2)) + 1e-8))
            at += max(1, take) + int(rng.uniform(*self.pause) * self.sample_rate)
        return audio

    def fixed(self, index: int) -> Example:
        example = self.draw(index, np.random.default_rng([*self.key, index]))
        example.track = f"{index:05d}_{example.track}"
        return example

    @property
    def recordings(self) -> int:
        return len(self)

    def recording(self, index: int) -> Example:
        return self.fixed(index)
