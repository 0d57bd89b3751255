"""Folders of stems as in MUSDB18-HQ: ROOT/SPLIT/TRACK/SOURCE.wav."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from os.path import basename, splitext
from pathlib import Path

from separate.audio import ENDINGS
from separate.data.layouts.base import MixtureLayout
from separate.data.layouts.held_out import tracks_of_split
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.data.storage.headers import audio_files, folders_in

MOST_STEMS = 16  # stems of one track, in layout detection
LOOKED_AT = 20  # tracks that layout detection reads
SHARED = 0.8  # share of these tracks that must have a file for each stem


@dataclass
class Stems(MixtureLayout):
    """Stems in WAV or FLAC.  `mixture: file` takes the track's mixture.wav.  See `held_out` for validation tracks."""

    detection_order = 1

    def find(self, split: str, opening: Opening) -> FoundTracks:
        folder, names = tracks_of_split(self, split, folders_in)
        wanted = [*self.sources, "mixture"] if self.mixture == "file" else self.sources
        return FoundTracks(
            [self._track(name, f"{folder}/{name}") for name in names], f"{folder}/TRACK/{{{','.join(wanted)}}}.wav"
        )

    def _track(self, name: str, folder: str) -> TrackFiles:
        found: dict[str, str] = {}  # of several formats the first in ENDINGS
        for path in sorted(audio_files(folder, deep=False), key=lambda path: ENDINGS.index(splitext(path)[1].lower())):
            found.setdefault(splitext(basename(path))[0], path)
        track = TrackFiles(name, folder, [[found.get(source, f"{folder}/{source}.wav")] for source in self.sources])
        if self.mixture == "file":
            track.mixture = found.get("mixture", f"{folder}/mixture.wav")
        elif "mixture" in found:
            track.unused = [found["mixture"]]
        return track

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for split in folders_in(folder):
            sources = _shared_names(folder / split)
            if sources is not None:
                return sources
        return None


def _shared_names(folder: Path) -> list[str] | None:
    """The names that most folders in a folder have a file for, if these can be stems; else None."""
    inside = folders_in(folder)[:LOOKED_AT]
    names = Counter(
        path.stem for name in inside for path in (folder / name).iterdir() if path.suffix.lower() in ENDINGS
    )
    shared = sorted(name for name, count in names.items() if count >= SHARED * len(inside) and name != "mixture")
    takes = any(not any(sign.isalpha() for sign in name) for name in shared)  # clips with a number for a name
    return shared if 2 <= len(shared) <= MOST_STEMS and not takes else None
