"""WHAM!, speakers with or without noise: ROOT/SPLIT/{mix_clean,mix_both,noise,s1,s2}/ID.wav (Wichern et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from separate.data.layouts.base import TrackLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks
from separate.data.layouts.wsj0mix import find_mixtures
from separate.data.storage.headers import folders_in
from separate.errors import UsageError

NOISE = "noise"  # the name of the source that is not a speaker
MIXTURES = {"sep_clean": "mix_clean", "sep_noisy": "mix_both"}  # by task


@dataclass
class TaskLayout(TrackLayout):
    """Speakers in mixtures without noise (`task: sep_clean`) or with noise (`task: sep_noisy`)."""

    task: Literal["sep_clean", "sep_noisy"] = "sep_clean"

    @property
    def mixture_name(self) -> str:
        """The name of the task's mixtures in WHAM! and LibriMix."""
        if self.task == "sep_clean" and NOISE in self.sources:
            raise UsageError("data.task=sep_clean has no noise, so noise cannot be a source; use data.task=sep_noisy")
        return MIXTURES[self.task]

    @property
    def holds_more(self) -> bool:
        return self.task == "sep_noisy" and NOISE not in self.sources


@dataclass
class Wham(TaskLayout):
    """One folder for the mixtures of each task and one for each source."""

    def find(self, split: str, opening: Opening) -> FoundTracks:
        return find_mixtures(self, split, self.mixture_name)

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for split in folders_in(folder):
            inside = folders_in(folder / split)
            if "s1" in inside and set(MIXTURES.values()) & set(inside):
                return [name for name in inside if name.startswith("s")]
        return None
