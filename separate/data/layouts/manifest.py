"""Files in any folders, listed in a manifest of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from separate.data.layouts.base import TrackLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.errors import DataError
from separate.files import TextError, check_name, read_text
from separate.validation import Range, brief, fits

KEYS = {"id", "split", "mixture", "sources", "start", "duration"}
SECONDS = Range(0, 1e9, unit="seconds")  # of start and duration


@dataclass
class Manifest(TrackLayout):
    """Lines of {"id", "split", "mixture"?, "sources": {NAME: PATH or null}, "start"?, "duration"?}.

    root: the manifest, or the folder of manifest.jsonl.  Paths are relative to its folder; null is silence.  Without
    "mixture" it is the sum of the sources.  start and duration are in seconds.
    """

    @property
    def is_sum(self) -> bool:
        return False  # the manifest does not say

    def find(self, split: str, opening: Opening) -> FoundTracks:
        path = self.folder / "manifest.jsonl" if self.folder.is_dir() else self.folder
        try:
            lines = read_text(path).split("\n")  # splitlines() also splits at characters of valid names
        except TextError as error:
            raise DataError(f"{path} {error}; data.root is the manifest's path") from None
        name = self.split_name(split)
        found = FoundTracks([], f'lines of {path} with "split": "{name}" and sources {", ".join(self.sources)}')
        ids: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                track = self._track(json.loads(line), name, path.parent)
            except json.JSONDecodeError as error:
                found.problems.append(f"{path}:{number}: is not JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                found.problems.append(f"{path}:{number}: is nested too deeply")
            except ValueError as error:
                found.problems.append(f"{path}:{number}: {error}")
            else:
                if track is None:
                    continue
                if ids.setdefault(track.name, number) != number:
                    found.problems.append(f"{path}:{number}: has the id of line {ids[track.name]}, {track.name}")
                found.tracks.append(track)
        return found

    def _track(self, entry: Any, split: str, folder: Path) -> TrackFiles | None:
        """The track of a line, None for a line of another split.  ValueError names the fault."""
        _check_keys(entry)
        if entry["split"] != split:
            return None
        missing = [source for source in self.sources if source not in entry["sources"]]
        if missing:
            raise ValueError(
                f"has no source {missing[0]} (it has {brief(', '.join(entry['sources']))}); null stands for silence"
            )
        _check_times(entry)
        paths = [entry.get("mixture"), *(entry["sources"][source] for source in self.sources)]
        if not all(path is None or isinstance(path, str) for path in paths):
            raise ValueError("has a path that is not text")
        for path in paths:
            check_name(path or "")
        mixture, *files = (None if path is None else str(folder / path) for path in paths)
        if mixture is None and not any(files):
            raise ValueError("names no file")
        return TrackFiles(
            str(entry["id"]),
            mixture or next(file for file in files if file),
            [[file] if file else [] for file in files],
            mixture,
            start=float(entry.get("start") or 0),
            duration=entry.get("duration"),
        )

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        return [] if any(path.name != "index.jsonl" for path in folder.glob("*.jsonl")) else None  # that is of shards


def _check_keys(entry: Any) -> None:
    """ValueError for a line without the required keys or with an unknown key."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sources"), dict):
        raise ValueError('has no "sources": {NAME: PATH}')
    unknown = sorted(set(entry) - KEYS)
    if unknown:
        raise ValueError(f'has the unknown key "{brief(unknown[0])}"; the keys are {", ".join(sorted(KEYS))}')
    for key in ("id", "split"):
        if key not in entry:
            raise ValueError(f'has no "{key}"')


def _check_times(entry: dict[str, Any]) -> None:
    """ValueError for a start or a duration out of range."""
    for key in ("start", "duration"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not fits(value, float) or not SECONDS.holds(value)):
            raise ValueError(f'"{key}" is {brief(value)}, and must be {SECONDS}')
