"""Speakers or classes mixed on the fly: clips of different folders joined with pauses, at levels drawn in dB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from separate.audio import NonFiniteError, frames_at
from separate.data.example import Example, FileExamples
from separate.data.layouts.base import split_folder
from separate.data.mixing.excerpts import all_non_finite, refuse_channels
from separate.data.storage.headers import Headers, audio_files, folders_in
from separate.data.storage.reading import Reader, Region, Span
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


class Pools(FileExamples):
    """Each example: as many different speakers as there are sources, their clips joined until it is full.

    Sources that are not interchangeable each have the pool of their name.
    snr: the levels of all speakers but the first are drawn within +-snr dB of the first;
    pause: seconds between clips, drawn within these bounds; examples: fixed ones in a split that is not trained on.
    grid: clips begin at multiples of so many samples.
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
        reader: Reader,
        snr: float,
        pause: Sequence[float],
        examples: int,
        grid: int = 1,
    ) -> None:
        super().__init__(sources, sample_rate, channels, excerpt)
        if len(pause) != 2 or not 0 <= pause[0] <= pause[1]:
            raise UsageError(f"data.pause={list(pause)} must be the least and the most seconds, e.g. [0.05,0.25]")
        self.pools = {name: Files(clips) for name, clips in pools.items()}
        for clips in self.pools.values():
            refuse_channels(clips, channels)
        self.reader = reader
        self.grid = grid
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
        names, spans = self._mix(rng)
        sources = [self.reader.source(of_one, self.frames) for of_one in spans]
        frames = self.frames if self.reader.spectral else None
        return Example("+".join(names), sources, None, self.reader.scale, frames)

    def _mix(self, rng: np.random.Generator) -> tuple[list[str], list[list[Span]]]:
        """The speakers of an example, and what each says."""
        names = self.sources
        if self.interchangeable:
            names = [self.speakers[i] for i in rng.choice(len(self.speakers), len(self.sources), replace=False)]
        gains = [0.0, *rng.uniform(-self.snr, self.snr, len(names) - 1)]  # dB
        return names, [self._speak(name, 10 ** (gain / 20), rng) for name, gain in zip(names, gains, strict=True)]

    def _speak(self, speaker: str, gain: float, rng: np.random.Generator) -> list[Span]:
        """One speaker for a whole example, every clip at the same RMS."""
        spans = []
        clips = self.pools[speaker]
        at = self._round(rng.uniform(0, LEAD) * self.sample_rate)
        while at < self.frames:
            piece = clips[int(rng.integers(len(clips)))]
            length = frames_at(piece.info, self.sample_rate)
            take = min(length, self.frames - at)
            start = self.grid * int(rng.integers((length - take) // self.grid + 1))
            region = Region((piece,), 0, length)
            try:
                clip = self.reader.read(region, start, take)
            except NonFiniteError:
                raise all_non_finite(piece for clips in self.pools.values() for piece in clips) from None
            rms = self.reader.scale * np.sqrt(np.mean(clip.astype(np.float32) ** 2))
            spans.append(Span(region, start, at, take, gain * LEVEL / (float(rms) + 1e-8)))
            at += self._round(max(1, take) + rng.uniform(self.pause[0], self.pause[1]) * self.sample_rate)
        return spans

    def _round(self, samples: float) -> int:
        """Up to a multiple of the grid."""
        return self.grid * -(-int(samples) // self.grid)

    def regions(self, mixtures: bool = True) -> list[Region]:
        """Every clip."""
        clips = [clip for pool in self.pools.values() for clip in pool]
        return [Region((clip,), 0, frames_at(clip.info, self.sample_rate)) for clip in clips]

    def groups(self) -> list[str]:
        return [name for name, pool in self.pools.items() for _ in pool]

    def fixed(self, index: int) -> Example:
        names, spans = self._mix(np.random.default_rng([*self.key, index]))
        sources = [self.reader.place(of_one, self.frames) for of_one in spans]
        return Example(f"{index:05d}_{'+'.join(names)}", sources, None, self.reader.scale)

    @property
    def recordings(self) -> int:
        return len(self)

    def recording(self, index: int) -> Example:
        return self.fixed(index)
