"""Clips mixed on the fly, in one folder for each speaker or class: ROOT/SPLIT/NAME/*.wav."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from separate.audio import ENDINGS, NonFiniteError, frames_at
from separate.data.example import Example, FileExamples
from separate.data.layouts.base import FolderLayout
from separate.data.layouts.detection import hinted
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import SplitFiles
from separate.data.mixing.excerpts import non_finite_error, refuse_channels
from separate.data.storage.headers import audio_files, folders_in
from separate.data.storage.reading import Reader, Region, Span
from separate.data.tracks import Files, Piece
from separate.errors import DataError, UsageError, nearest
from separate.validation import number

LEVEL = 0.05  # RMS of the clips of the first speaker
LEAD = 0.3  # seconds, the longest silence before the first clip


@dataclass
class Pools(FolderLayout):
    """Clips of speakers or, with `interchangeable: false`, of one class for each source.

    snr: in dB; the level of every source but the first is drawn within +-snr of the first.  pause: [min, max] seconds
    between two clips.  examples: the number of fixed examples in valid and in test.
    """

    snr: float = number(5.0, least=0, most=200, unit="dB")
    pause: list[float] = number([0.05, 0.25], least=0, most=3600, unit="seconds")
    examples: int = number(200, least=1, most=10_000_000)

    detection_order = 2

    def open(self, split: str, opening: Opening) -> PoolExamples:
        with hinted(self):
            clips = self.clips(split, opening)
        return PoolExamples(self, split, clips, opening.reader(self), opening.grid(split))

    def clips(self, split: str, opening: Opening) -> dict[str, list[Piece]]:
        """The clips of each speaker or class."""
        folder = self.split_folder(split)
        paths = {name: audio_files(folder / name) for name in self._names(folder)}
        infos, problems = opening.headers(self.folder).read([path for clips in paths.values() for path in clips])
        problems += [f"{path}: holds no samples" for path, info in infos.items() if info.frames == 0]
        if problems:
            raise DataError.of_files(f"{len(problems)} bad files in {folder}", problems, "Repair or remove them.")
        found = {name: [Piece(path, infos[path]) for path in clips] for name, clips in paths.items() if clips}
        if len(found) < len(self.sources):
            raise DataError(
                f"{folder} has {len(found)} speakers with audio and data.sources asks for {len(self.sources)} at a "
                f"time; the layout is {folder}/SPEAKER/*.wav"
            )
        return found

    def _names(self, folder: Path) -> list[str]:
        """The folders of the speakers or, for classes, those of the sources."""
        names = folders_in(folder)
        if self.interchangeable:
            return names
        missing = [source for source in self.sources if source not in names]
        if missing:
            raise DataError(
                f"{folder} has no folder for the source {missing[0]}; {nearest(missing[0], names)}; to draw "
                f"speakers from all folders, use data.interchangeable=true"
            )
        return list(self.sources)

    def inspect(self, split: str, opening: Opening) -> SplitFiles:
        clips = self.clips(split, opening)
        infos = {path: info for pieces in clips.values() for path, info in pieces}
        return SplitFiles(f"{self.split_folder(split)}/SPEAKER/*.wav", infos)

    def speakers(self, found: SplitFiles) -> set[str]:
        return {Path(path).parent.name for path in found.infos}

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for split in folders_in(folder):
            names = folders_in(folder / split)
            clips = (path for name in names for path in (folder / split / name).iterdir())
            if len(names) >= 2 and any(path.suffix.lower() in ENDINGS for path in clips):
                return []
        return None


class PoolExamples(FileExamples):
    """Examples of a different speaker for each source, whose clips are joined to the length of an example.

    pools: the clips of each speaker.  grid: clips begin at multiples of this number of samples.
    """

    def __init__(
        self, layout: Pools, split: str, pools: Mapping[str, Sequence[Piece]], reader: Reader, grid: int = 1
    ) -> None:
        super().__init__(layout.sources, layout.sample_rate, layout.channels, layout.excerpt)
        pause = layout.pause
        if len(pause) != 2 or not 0 <= pause[0] <= pause[1]:
            raise UsageError(f"data.pause={list(pause)} must be [min, max] seconds, e.g. [0.05,0.25]")
        self.pools = {name: Files(clips) for name, clips in pools.items()}
        for clips in self.pools.values():
            refuse_channels(clips, layout.channels)
        self.reader = reader
        self.grid = grid
        self.speakers = sorted(pools)
        self.interchangeable = layout.interchangeable
        self.snr = layout.snr
        self.pause = pause
        self.key = (0, *split.encode())  # seed of the fixed examples, the same for every seed of a training
        seconds = sum(clip.info.seconds for clips in pools.values() for clip in clips)
        self.examples = max(1, round(seconds / layout.excerpt)) if split == "train" else layout.examples

    def __len__(self) -> int:
        return self.examples

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        names, spans = self._mix(rng)
        sources = [self.reader.source(clips, self.frames) for clips in spans]
        frames = self.frames if self.reader.spectral else None
        return Example("+".join(names), sources, None, self.reader.scale, frames)

    def _mix(self, rng: np.random.Generator) -> tuple[list[str], list[list[Span]]]:
        """The speakers of an example and the spans of each."""
        names = self.sources
        if self.interchangeable:
            names = [self.speakers[i] for i in rng.choice(len(self.speakers), len(self.sources), replace=False)]
        gains = [0.0, *rng.uniform(-self.snr, self.snr, len(names) - 1)]  # dB
        return names, [self._speak(name, 10 ** (gain / 20), rng) for name, gain in zip(names, gains, strict=True)]

    def _speak(self, speaker: str, gain: float, rng: np.random.Generator) -> list[Span]:
        """The clips of one speaker for a whole example, all at the same RMS."""
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
                raise non_finite_error(piece for clips in self.pools.values() for piece in clips) from None
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
        sources = [self.reader.samples(clips, self.frames) for clips in spans]
        return Example(f"{index:05d}_{'+'.join(names)}", sources, None, self.reader.scale)

    @property
    def recordings(self) -> int:
        return len(self)

    def recording(self, index: int) -> Example:
        return self.fixed(index)
