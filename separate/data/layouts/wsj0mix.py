"""Mixtures of speakers as in WSJ0-2mix: ROOT/SPLIT/{mix,s1,s2}/ID.wav (Hershey et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import basename, splitext
from pathlib import Path

from separate.data.layouts.base import TrackLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.data.storage.headers import audio_files, folders_in


@dataclass
class Wsj0Mix(TrackLayout):
    """A folder of mixtures and one for each source, with the same file names."""

    def find(self, split: str, opening: Opening) -> FoundTracks:
        return find_mixtures(self, split, "mix")

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for split in folders_in(folder):
            inside = folders_in(folder / split)
            if {"mix", "s1", "s2"} <= set(inside):
                return [name for name in inside if name != "mix"]
        return None


def find_mixtures(layout: TrackLayout, split: str, mixture: str) -> FoundTracks:
    """The tracks of ROOT/SPLIT/{MIXTURE,SOURCE,...}/ID.wav.  mixture: the folder of mixtures."""
    folder = layout.split_folder(split)
    mixtures = audio_files(folder / mixture, deep=False) if (folder / mixture).is_dir() else []
    tracks = [
        TrackFiles(
            splitext(basename(path))[0],
            path,
            [[f"{folder}/{source}/{basename(path)}"] for source in layout.sources],
            path,
        )
        for path in mixtures
    ]
    return FoundTracks(tracks, f"{folder}/{{{','.join([mixture, *layout.sources])}}}/ID.wav")
