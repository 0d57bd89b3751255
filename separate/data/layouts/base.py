"""The interface of a layout: the keys of a data set and the way to open its splits.

`Layout` is the base class of all, `FolderLayout` of audio in files, `TrackLayout` of recordings with their sources.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from separate.config import MISSING, AugmentConfig
from separate.data.example import Examples, FileExamples
from separate.data.layouts.detection import hinted
from separate.data.layouts.opening import Fetch, Opening
from separate.data.layouts.track_files import FoundTracks, SplitFiles
from separate.data.mixing.excerpts import Excerpts
from separate.data.mixing.loudness import LoudnessIndex
from separate.data.tracks import Track, Tracks
from separate.errors import DataError, UsageError
from separate.validation import number

WSJ0_SPEAKER = re.compile(r"(?:^|_)([0-9a-z]{3})[0-9a-z]{5}(?=_)")  # in names of mixtures such as 011a0101_0.5_...


@dataclass
class Layout(ABC):
    """A data set: its keys under `data` with their types and ranges, and `open` for its examples.

    A subclass is a dataclass with further keys; it implements `open`.  A YAML in conf/data names it by `_target_`.
    sources: their names, in the order of the network's outputs.  interchangeable: the sources have no fixed order, e.g.
    two speakers.  excerpt: seconds of a training example.  licence: of the audio, noted in checkpoints.
    """

    _target_: str = field(default="", kw_only=True)  # the dotted name of the class
    sources: list[str] = MISSING
    interchangeable: bool = False
    sample_rate: int = number(MISSING, least=1, most=1_536_000, unit="Hz", example=44100)
    channels: int = number(1, least=1, most=1024)
    excerpt: float = number(MISSING, above=0, most=86_400, unit="seconds", example=4.0)
    workers: int | Literal["auto"] = number("auto", least=0, most=1024, example=2)
    licence: str | None = None

    detection_order: ClassVar[int] = 0  # larger for layouts that match many folders, which are tried later

    def __post_init__(self) -> None:
        self._target_ = self._target_ or f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def name(self) -> str:
        """The name of the layout's module and of its YAML: stems, wham ..."""
        return self._target_.split(".")[-2]

    @abstractmethod
    def open(self, split: str, opening: Opening) -> Examples:
        """The examples of a split: train, valid or test.  DataError names every faulty file."""

    def check(self, augment: AugmentConfig) -> None:
        """UsageError for an augmentation that this layout cannot apply."""
        for name in ("loudness", "shift"):
            if getattr(augment, name):
                raise UsageError(
                    f"data={self.name} draws the levels and positions of its sources itself, so augment.{name} has no "
                    f"effect; leave it out"
                )

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        """The sources of a folder with this layout, [] if they are unknown, None for a folder of another layout."""
        return None


@dataclass
class FolderLayout(Layout):
    """Audio in files.  root: a folder, a file or a URL.  splits: the name of each split below it."""

    root: str = MISSING
    splits: dict[str, str] = field(default_factory=dict)

    @abstractmethod
    def open(self, split: str, opening: Opening) -> FileExamples: ...

    @abstractmethod
    def inspect(self, split: str, opening: Opening) -> SplitFiles:
        """All files of a split and their faults.  DataError if the split cannot be listed or has no files."""

    def fetcher(self, opening: Opening) -> Fetch | None:
        """A function that decodes or downloads a file before it is read; None if no file needs it."""
        return None

    def speakers(self, found: SplitFiles) -> set[str]:
        """The speakers of a split, as found in the names of files or folders."""
        return {name for track in found.readable for name in WSJ0_SPEAKER.findall(track.name)}

    @property
    def is_sum(self) -> bool:
        """Whether `separate-data check` expects the file of a mixture to be the sum of its sources."""
        return False

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    def split_folder(self, split: str, optional: bool = False) -> Path:
        """The folder of a split; DataError if it is missing and not optional."""
        if not self.folder.is_dir():
            raise DataError(
                f"data.root={self.folder} is not a folder; set data.root to the folder that holds "
                f"{', '.join(sorted(set(self.splits.values())))}"
            )
        folder = self.folder / self.split_name(split)
        if not optional and not folder.is_dir():
            raise DataError(
                f"{folder} is not a folder: the {split} split is missing; put it there or name its folder with "
                f"data.splits.{split}=NAME"
            )
        return folder

    def split_name(self, split: str) -> str:
        if split not in self.splits:
            raise UsageError(
                f"data.splits has no {split} (it has {', '.join(self.splits) or 'none'}); add data.splits.{split}=NAME"
            )
        return self.splits[split]


@dataclass
class TrackLayout(FolderLayout):
    """Recordings with their sources.  A subclass implements `find`.

    coherent: the probability that a training example takes all sources from the same time of one track.
    min_activity: the share of a training example in which each source must be audible.
    """

    coherent: float = number(1.0, least=0, most=1)
    min_activity: float = number(0.0, least=0, most=1)

    excerpts: ClassVar[type[Excerpts]] = Excerpts

    @abstractmethod
    def find(self, split: str, opening: Opening) -> FoundTracks:
        """The files of each track of a split.  opening: holds the cache folder of decoded and downloaded files."""

    @property
    def holds_more(self) -> bool:
        """Whether a mixture holds more than its sources, for example noise."""
        return False

    @property
    def is_sum(self) -> bool:
        return not self.holds_more

    def inspect(self, split: str, opening: Opening) -> SplitFiles:
        found = self.find(split, opening)
        if not found.tracks and not found.problems:
            raise DataError(f"no tracks found; looked for {found.looked_for}; check data.root and data.sources")
        return found.inspect(opening.headers(self.folder))

    def tracks(self, split: str, opening: Opening) -> list[Track]:
        """All tracks of a split; one DataError names all faults."""
        found = self.inspect(split, opening)
        if found.problems:
            count = len(found.problems)
            raise DataError.of_files(
                f"{count} problem{'s' if count > 1 else ''} in the data",
                found.problems,
                f"The layout is {found.looked_for}; repair or remove these, or name other sources with data.sources.",
            )
        return found.tracks

    def check(self, augment: AugmentConfig) -> None:
        if (self.coherent < 1 or augment.shift) and self.holds_more:
            raise UsageError(
                "the mixtures of this data hold more than their sources, so those of different times or tracks cannot "
                "be mixed; use data.coherent=1 and augment.shift=0, or name all parts of a mixture in data.sources"
            )

    def open(self, split: str, opening: Opening) -> Excerpts:
        with hinted(self):
            tracks = Tracks(self.tracks(split, opening))
        single = np.diff(tracks.offsets).max(initial=0) <= 1  # a sum of 16-bit samples may exceed 16 bits
        pcm = single and tracks.files.all_are("PCM_16", self.sample_rate, self.channels)
        reader = opening.reader(self, pcm, self.fetcher(opening))
        examples = self.excerpts(self, split, tracks, reader, opening.augment.shift, opening.grid(split))
        if split == "train" and (self.min_activity > 0 or opening.augment.loudness):
            regions = examples.regions(mixtures=False)
            examples.index = LoudnessIndex(regions, reader, opening.arrays(), self.workers)
        return examples


@dataclass
class MixtureLayout(TrackLayout):
    """Tracks whose mixture is the sum of the sources or (`mixture: file`) a file, which may hold more than these."""

    mixture: Literal["sum", "file"] = "sum"

    @property
    def holds_more(self) -> bool:
        return self.mixture == "file"
