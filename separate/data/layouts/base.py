"""Layouts: which files in a folder are the mixture and the sources of which track of which split."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import basename, isabs, isdir, splitext
from pathlib import Path
from typing import Any

from separate.audio import ENDINGS, Info, shown
from separate.data.storage.headers import Headers, audio_files, folders_in
from separate.data.tracks import Piece, Signal, Track
from separate.errors import DataError, UsageError, nearest
from separate.files import TextError, check_name, read_text
from separate.validation import Range, brief, fits

log = logging.getLogger(__name__)

# the validation tracks of MUSDB18, by the names that its authors' package gives
MUSDB18_VALID = (
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)
SECONDS = Range(0, 1e9, unit="seconds")  # start and duration in a manifest
NOISE = "noise"  # the source of wham and librimix that is no speaker


@dataclass
class Sought:
    """What a layout expects of one track: paths, whether or not anything is there.

    place: where to point at; sources: the files of each, that add up (none: silence); beside: further files that must
    be as long; start, duration: in seconds, where the track is a part of its files.
    """

    name: str
    place: str
    sources: list[list[str]]
    mixture: str | None = None
    beside: list[str] = field(default_factory=list)
    start: float = 0.0
    duration: float | None = None

    @property
    def paths(self) -> list[str]:
        mixture = [] if self.mixture is None else [self.mixture]
        return [*(path for files in self.sources for path in files), *mixture, *self.beside]


@dataclass
class Listing:
    """The tracks of one split that a layout found, and what it could not read.

    looked_for: the layout in words; ragged: whether a file may end before the others and is silent from there on;
    infos: headers that are known already.
    """

    sought: list[Sought]
    looked_for: str
    problems: list[str] = field(default_factory=list)
    ragged: bool = False
    infos: dict[str, Info] = field(default_factory=dict)

    def headers(self, headers: Headers) -> tuple[dict[str, Info], list[str]]:
        """Headers of all files, and `path: reason` for each that has none."""
        paths = [path for one in self.sought for path in one.paths if path not in self.infos]
        found, problems = headers.read(paths)
        return {**self.infos, **found}, problems


def list_stems(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str], mixture: str) -> Listing:
    """ROOT/SPLIT/TRACK/SOURCE.wav, as in MUSDB18-HQ; see `with_validation`.

    mixture: `sum` of the sources, or `file`, the track's own mixture.wav.
    """
    folder, names = with_validation(root, splits, split, folders_in)
    sought = []
    for name in names:
        place = f"{folder}/{name}"
        found: dict[str, str] = {}
        for path in sorted(audio_files(place, deep=False), key=_rank):  # the first of ENDINGS wins
            found.setdefault(_stem(path), path)
        files = [[found.get(source, f"{place}/{source}.wav")] for source in sources]
        own = found.get("mixture", f"{place}/mixture.wav") if mixture == "file" else None
        beside = [found["mixture"]] if own is None and "mixture" in found else []  # is not used, but must be as long
        sought.append(Sought(name, place, files, own, beside))
    wanted = [*sources, "mixture"] if mixture == "file" else sources
    return Listing(sought, f"{folder}/TRACK/{{{','.join(wanted)}}}.wav")


def list_slakh(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str], mixture: str) -> Listing:
    """ROOT/SPLIT/TRACK/{metadata.yaml,stems/ID.flac}, as in Slakh2100.

    A source is the sum of the stems whose `inst_class` it names, in small letters with _ for all else: `bass`,
    `synth_lead`.  `other` is the sum of those that no source names.  A class that a track does not have is silent.
    mixture: `sum` of the sources, or `file`, the track's own mix.flac.
    """
    folder = split_folder(root, splits, split)
    listing = Listing([], f"{folder}/TRACK/{{metadata.yaml,stems/ID.flac}}", ragged=True)
    classes: set[str] = set()
    for name in folders_in(folder):
        place = f"{folder}/{name}"
        try:
            stems = _slakh_classes(f"{place}/metadata.yaml")
        except DataError as error:
            listing.problems.append(str(error))
            continue
        classes.update(stems.values())
        there = {_stem(path): path for path in audio_files(f"{place}/stems")} if isdir(f"{place}/stems") else {}
        files: list[list[str]] = [[] for _ in sources]
        for stem, kind in stems.items():
            owner = kind if kind in sources else "other"
            if owner in sources:
                files[sources.index(owner)].append(there.get(stem, f"{place}/stems/{stem}.flac"))
        own = next((path for path in audio_files(place, deep=False) if _stem(path) == "mix"), f"{place}/mix.flac")
        listing.sought.append(Sought(name, place, files, own if mixture == "file" else None))
    unknown = [source for source in sources if classes and source not in classes and source != "other"]
    if unknown:
        listing.problems.append(
            f"{folder}: no track has a stem of class {unknown[0]}; {nearest(unknown[0], [*classes, 'other'])}"
        )
    return listing


def _slakh_classes(path: str) -> dict[str, str]:
    """{stem: class} of the stems that a track's metadata.yaml says were rendered."""
    import yaml

    try:
        stems = yaml.load(read_text(path, most=2**24), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stems"]
        found = {
            stem: "_".join("".join(c if c.isalnum() else " " for c in facts["inst_class"].lower()).split())
            for stem, facts in stems.items()
            if facts.get("audio_rendered", True)
        }
        for stem in found:
            if "/" in stem:
                raise TextError(f"names a stem {brief(stem)}, which is no name of a file")
            check_name(stem)
        return found
    except TextError as error:
        raise DataError(f"{path}: {error}") from None
    # an integer of many digits is a ValueError, deep nesting a RecursionError
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: does not name the inst_class of each of its stems") from None


def list_wsj0mix(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str], mixture: str) -> Listing:
    """ROOT/SPLIT/{MIXTURE,SOURCE,...}/ID.wav, as of WSJ0-2mix and WHAM!.  mixture: the name of the mixtures' folder."""
    folder = split_folder(root, splits, split)
    mixtures = audio_files(folder / mixture, deep=False) if (folder / mixture).is_dir() else []
    sought = [
        Sought(_stem(path), path, [[f"{folder}/{source}/{basename(path)}"] for source in sources], path)
        for path in mixtures
    ]
    return Listing(sought, f"{folder}/{{{','.join([mixture, *sources])}}}/ID.wav")


def mixture_of_task(task: str, sources: Sequence[str]) -> str:
    """The name that WHAM! and LibriMix give the mixture of a task."""
    if task == "sep_clean" and NOISE in sources:
        raise UsageError("data.task=sep_clean has no noise to be a source; use data.task=sep_noisy")
    return {"sep_clean": "mix_clean", "sep_noisy": "mix_both"}[task]


def list_librimix(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str], task: str) -> Listing:
    """ROOT/metadata/mixture_SPLIT_MIX.csv, as LibriMix writes it.

    Its paths are those of the machine that made it.  They are taken below ROOT where that has the split's folder, so
    that a set that was moved is read where it is.
    """
    mixture = mixture_of_task(task, sources)
    name = split_name(splits, split)
    path = root / "metadata" / f"mixture_{name}_{mixture}.csv"
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("mixture_*.csv")) if path.parent.is_dir() else []
        raise DataError(
            f"{path} is missing"
            + (f"; there are {', '.join(others)}: name another split with data.splits.{split}=NAME" if others else "")
            + ("" if others else "; data.root is the folder that holds metadata, as Libri2Mix/wav8k/min")
        )
    columns = [NOISE if source == NOISE else f"source_{number}" for number, source in enumerate(sources, 1)]
    listing = Listing([], f"the paths in {path}")
    moved = (root / name).is_dir()

    def place(recorded: str) -> str:
        parts = recorded.replace("\\", "/").split("/")
        if moved and len(parts) >= 3:
            return "/".join([str(root), *parts[-3:]])  # SPLIT/s1/ID.wav
        return recorded if isabs(recorded) else f"{root}/{recorded}"

    wanted = ["mixture_ID", "mixture_path", *(f"{column}_path" for column in columns)]
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        there = rows.fieldnames or []
        missing = [column for column in wanted if column not in there]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]}; choose data.sources of those it has: "
                f"{brief(', '.join(there)) or 'none'}"
            )
        for row in rows:
            values = [row[column] for column in wanted]
            if not all(values):
                column = next(c for c, value in zip(wanted, values, strict=True) if not value)
                listing.problems.append(f"{path}:{rows.line_num}: has no {column}")
                continue
            for value in values:
                check_name(value)
            name, own, *files = values[0], *map(place, values[1:])
            listing.sought.append(Sought(name, own, [[file] for file in files], own))
    except (TextError, csv.Error) as error:  # an endless field is a csv.Error
        raise DataError(f"{path}: {error}") from None
    return listing


def list_manifest(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str]) -> Listing:
    """Lines of JSON: {"id", "split", "mixture"?, "sources": {NAME: PATH or null}, "start"?, "duration"?}.

    Paths are relative to the file, null is silence, a mixture that is not given is the sum; start and duration are in
    seconds.
    """
    if root.is_dir():
        root = root / "manifest.jsonl"
    try:
        lines = read_text(root).split("\n")  # not splitlines(), which also splits at signs that names may hold
    except TextError as error:
        raise DataError(f"{root} {error}; data.root is the manifest's path") from None
    name = split_name(splits, split)
    listing = Listing([], f'lines of {root} with "split": "{name}" and sources {", ".join(sources)}')
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = _sought_in(json.loads(line), name, sources, root.parent)
        except json.JSONDecodeError as error:
            listing.problems.append(f"{root}:{number}: is no JSON ({error.msg} at column {error.colno})")
        except RecursionError:
            listing.problems.append(f"{root}:{number}: is nested too deeply")
        except ValueError as error:
            listing.problems.append(f"{root}:{number}: {error}")
        else:
            if found is None:
                continue
            if ids.setdefault(found.name, number) != number:
                listing.problems.append(f"{root}:{number}: has the id of line {ids[found.name]}, {found.name}")
            listing.sought.append(found)
    return listing


def _sought_in(entry: Any, split: str, sources: Sequence[str], folder: Path) -> Sought | None:
    """The track of one line of a manifest, None where it is another split's; ValueError says what is wrong."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sources"), dict):
        raise ValueError('has no "sources": {NAME: PATH}')
    unknown = sorted(set(entry) - {"id", "split", "mixture", "sources", "start", "duration"})
    if unknown:
        raise ValueError(f'has the key "{brief(unknown[0])}", which is none of a manifest')
    if "id" not in entry or "split" not in entry:
        raise ValueError('has no "id"' if "id" not in entry else 'has no "split"')
    if entry["split"] != split:
        return None
    missing = [source for source in sources if source not in entry["sources"]]
    if missing:
        raise ValueError(
            f"has no source {missing[0]} (it has {brief(', '.join(entry['sources']))}); null stands for silence"
        )
    for key in ("start", "duration"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not fits(value, float) or not SECONDS.holds(value)):
            raise ValueError(f'"{key}" is {brief(value)}, and must be {SECONDS}')
    paths = [entry.get("mixture"), *(entry["sources"][source] for source in sources)]
    if not all(path is None or isinstance(path, str) for path in paths):
        raise ValueError("has a path that is not text")
    for path in paths:
        check_name(path or "")
    mixture, *files = (None if path is None else str(folder / path) for path in paths)
    if mixture is None and not any(files):
        raise ValueError("names no file")
    return Sought(
        str(entry["id"]),
        mixture or next(file for file in files if file),
        [[file] if file else [] for file in files],
        mixture,
        start=float(entry.get("start") or 0),
        duration=entry.get("duration"),
    )


def with_validation(
    root: Path, splits: Mapping[str, str], split: str, names_in: Callable[[Path], list[str]]
) -> tuple[Path, list[str]]:
    """The folder of a split and the names of the tracks in it.

    Where valid has no folder it is held out of train: the tracks that MUSDB18 names where all are there, else the last
    tenth.
    """
    if (split_folder(root, splits, "valid", optional=True)).is_dir() or split not in ("train", "valid"):
        folder = split_folder(root, splits, split)
        return folder, names_in(folder)
    folder = split_folder(root, splits, "train")
    names = names_in(folder)
    if len(names) == 1:
        raise DataError(f"{folder} has one track and there is no {splits['valid']} folder; add tracks to train on")
    held_out = [name for name in names if name in MUSDB18_VALID]
    if len(held_out) < len(MUSDB18_VALID):
        held_out = names[-max(1, round(len(names) / 10)) :] if names else []
    if split == "train":
        return folder, [name for name in names if name not in held_out]
    log.info("%s has no %s folder: held out of training for validation: %s", root, splits["valid"], ", ".join(held_out))
    return folder, held_out


def split_folder(root: Path, splits: Mapping[str, str], split: str, optional: bool = False) -> Path:
    """The folder of a split, which must exist unless it is optional."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; set data.root to the folder that holds {_names(splits)}")
    folder = root / split_name(splits, split)
    if not optional and not folder.is_dir():
        raise DataError(
            f"{folder} is no folder: the {split} split is missing; put it there or name its folder with "
            f"data.splits.{split}=NAME"
        )
    return folder


def split_name(splits: Mapping[str, str], split: str) -> str:
    if split not in splits:
        raise UsageError(f"data.splits names nothing for {split}; it has {_names(splits)}")
    return splits[split]


def _names(splits: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(splits.values())))


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


def _rank(path: str) -> int:
    return ENDINGS.index(splitext(path)[1].lower())


def check(listing: Listing, headers: Headers) -> tuple[list[Track], list[str]]:
    """The tracks whose files are all as they should be, and all that is wrong with the others."""
    infos, problems = listing.headers(headers)
    problems = [*listing.problems, *problems]
    tracks = []
    for one in listing.sought:
        found = {path: infos[path] for path in one.paths if path in infos}
        wrong = None
        if len({info.sample_rate for info in found.values()}) > 1 or (
            len({info.frames for info in found.values()}) > 1 and not listing.ragged
        ):
            lengths = ", ".join(
                f"{'/'.join(shown(path).split('/')[-2:])} {info.frames} at {info.sample_rate} Hz"
                for path, info in found.items()
            )
            wrong = f"lengths in samples differ: {lengths}"
        elif len(found) == len(set(one.paths)):
            track = _track(one, lambda path: Piece(path, infos[path]))
            rate = next((info.sample_rate for info in found.values()), 1)
            if not any(info.frames for info in found.values()):
                wrong = "holds no samples"
            elif track.length(rate) <= 0:
                wrong = f"starts at {one.start} s, where its files have ended"
            elif one.duration is not None and track.length(rate) < round(one.duration * rate):
                wrong = f"lasts {one.duration} s from {one.start} s, and its files end before"
            else:
                tracks.append(track)
        if wrong:
            problems.append(f"{one.place}: {wrong}")
    return tracks, problems


def _track(one: Sought, piece: Callable[[str], Piece]) -> Track:
    def signal(paths: Sequence[str]) -> Signal:
        return tuple(map(piece, paths))

    mixture = None if one.mixture is None else signal([one.mixture])
    return Track(one.name, tuple(map(signal, one.sources)), mixture, one.start, one.duration)


def tracks_of(listing: Listing, headers: Headers) -> list[Track]:
    """All tracks of a listing; DataError names everything that is wrong, at once."""
    if not listing.sought and not listing.problems:
        raise DataError(f"no tracks found; looked for {listing.looked_for}; check data.root and data.sources")
    tracks, problems = check(listing, headers)
    if problems:
        raise DataError.of_files(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the data",
            problems,
            f"The layout is {listing.looked_for}; mend or remove these, or name other sources with data.sources.",
        )
    return tracks
