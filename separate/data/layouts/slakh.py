"""Slakh2100: ROOT/SPLIT/TRACK/{metadata.yaml,stems/ID.flac} (Manilow et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import basename, isdir, splitext
from pathlib import Path

from separate.data.layouts.base import MixtureLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.data.storage.headers import audio_files, folders_in
from separate.errors import DataError, nearest
from separate.files import TextError, check_name, read_text
from separate.validation import brief

LARGEST_METADATA = 2**24  # bytes


@dataclass
class Slakh(MixtureLayout):
    """Sums of stems by class.

    A source is the sum of the stems of one `inst_class`, in lower case with _ between words: `bass`, `synth_lead`.
    `other` is the sum of the stems of all other classes.  A class without stems in a track is silent.
    `mixture: file` takes the track's mix.flac.
    """

    def find(self, split: str, opening: Opening) -> FoundTracks:
        folder = self.split_folder(split)
        found = FoundTracks([], f"{folder}/TRACK/{{metadata.yaml,stems/ID.flac}}", ragged=True)
        classes: set[str] = set()
        for name in folders_in(folder):
            try:
                stems = _classes(f"{folder}/{name}/metadata.yaml")
            except DataError as error:
                found.problems.append(str(error))
                continue
            classes.update(stems.values())
            found.tracks.append(self._track(name, f"{folder}/{name}", stems))
        unknown = [source for source in self.sources if classes and source not in classes and source != "other"]
        if unknown:
            found.problems.append(
                f"{folder}: no track has a stem of class {unknown[0]}; {nearest(unknown[0], [*classes, 'other'])}"
            )
        return found

    def _track(self, name: str, folder: str, stems: dict[str, str]) -> TrackFiles:
        """stems: {stem: class}."""
        stem_folder = f"{folder}/stems"
        present = {_stem(path): path for path in audio_files(stem_folder)} if isdir(stem_folder) else {}
        track = TrackFiles(name, folder, [[] for _ in self.sources])
        for stem, kind in stems.items():
            source = kind if kind in self.sources else "other"
            if source in self.sources:
                track.sources[self.sources.index(source)].append(present.get(stem, f"{stem_folder}/{stem}.flac"))
        if self.mixture == "file":
            mixes = (path for path in audio_files(folder, deep=False) if _stem(path) == "mix")
            track.mixture = next(mixes, f"{folder}/mix.flac")
        return track

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for split in folders_in(folder):
            for track in folders_in(folder / split)[:1]:
                place = folder / split / track
                if (place / "metadata.yaml").is_file() and (place / "stems").is_dir():
                    return []
        return None


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


def _classes(path: str) -> dict[str, str]:
    """{stem: class} of the rendered stems in a track's metadata.yaml; DataError for other contents."""
    import yaml

    try:
        text = read_text(path, most=LARGEST_METADATA)
        stems = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stems"]
        found = {
            stem: "_".join("".join(c if c.isalnum() else " " for c in facts["inst_class"].lower()).split())
            for stem, facts in stems.items()
            if facts.get("audio_rendered", True)
        }
        for stem in found:
            if "/" in stem:
                raise TextError(f"names a stem {brief(stem)}, which is not a file name")
            check_name(stem)
        return found
    except TextError as error:
        raise DataError(f"{path}: {error}") from None
    # an integer of many digits is a ValueError, deep nesting a RecursionError
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: does not name the inst_class of each of its stems") from None
