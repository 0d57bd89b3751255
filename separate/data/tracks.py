"""Layouts: which files in a folder are the mixture and the sources of which track."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from separate.audio import ENDINGS, Info, UnreadableError, probe
from separate.errors import DataError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Track:
    """One recording: its sources' files in order, its mixture's where it has one (else it is their sum).

    files: the header of each of them; all have the same length and sample rate.
    """

    name: str
    sources: tuple[Path, ...]
    mixture: Path | None
    files: dict[Path, Info]

    @property
    def info(self) -> Info:
        return self.files[self.sources[0]]


def list_stems(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str]) -> list[Track]:
    """ROOT/SPLIT/TRACK/SOURCE.wav, as in MUSDB18-HQ.  Without a folder for valid, the last tenth of train is valid."""
    folder = split_folder(root, splits, split, optional=split == "valid")
    held_out = not split_folder(root, splits, "valid", optional=True).is_dir()
    if split == "valid" and held_out:
        folder = split_folder(root, splits, "train")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if held_out and split in ("train", "valid"):
        if len(folders) == 1:
            raise DataError(f"{folder} has one track and there is no {splits['valid']} folder; add tracks to train on")
        count = max(1, round(len(folders) / 10))
        folders = folders[-count:] if split == "valid" else folders[:-count]
        if split == "valid":
            names = ", ".join(path.name for path in folders)
            log.info("%s has no %s folder: held out of training for validation: %s", root, splits["valid"], names)
    wanted = []
    for path in folders:
        # the first ending of ENDINGS wins where a source is there twice
        found = {file.stem: file for file in sorted(audio_files(path, deep=False), key=_rank, reverse=True)}
        files = [found.get(source, path / f"{source}.wav") for source in sources]
        mixture = [found["mixture"]] if "mixture" in found else []  # is not used, but must be as long
        wanted.append(Wanted(path.name, path, files, None, mixture))
    return _check(wanted, f"{folder}/TRACK/{{{','.join(sources)}}}.wav")


def list_wsj0mix(root: Path, splits: Mapping[str, str], split: str, sources: Sequence[str]) -> list[Track]:
    """ROOT/SPLIT/{mix,s1,s2,...}/ID.wav, as WSJ0-2mix is generated."""
    folder = split_folder(root, splits, split)
    mixtures = audio_files(folder / "mix") if (folder / "mix").is_dir() else []
    wanted = [Wanted(path.stem, path, [folder / s / path.name for s in sources], path, [path]) for path in mixtures]
    return _check(wanted, f"{folder}/{{mix,{','.join(sources)}}}/ID.wav")


def split_folder(root: Path, splits: Mapping[str, str], split: str, optional: bool = False) -> Path:
    """The folder of a split, which must exist unless it is optional."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; set data.root to the folder that holds {_names(splits)}")
    if split not in splits:
        raise UsageError(f"data.splits names no folder for {split}; it has {_names(splits)}")
    folder = root / splits[split]
    if not optional and not folder.is_dir():
        raise DataError(
            f"{folder} is no folder: the {split} split is missing; put it there or name its folder with "
            f"data.splits.{split}=NAME"
        )
    return folder


def _names(splits: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(splits.values())))


def audio_files(folder: Path, deep: bool = True) -> list[Path]:
    """The audio files of a folder and (deep) the folders in it, sorted, without hidden ones."""
    paths = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _rank(path: Path) -> int:
    return ENDINGS.index(path.suffix.lower())


@dataclass
class Wanted:
    """What a layout expects of one track.  place: where to point at; beside: further files that must be as long."""

    name: str
    place: Path
    sources: list[Path]
    mixture: Path | None
    beside: list[Path]


def _check(wanted: Sequence[Wanted], looked_for: str) -> list[Track]:
    """Read the header of every file, and refuse all that is wrong at once."""
    if not wanted:
        raise DataError(f"no tracks found; looked for {looked_for}; check data.root and data.sources")
    infos, problems = probe_all([path for one in wanted for path in (*one.sources, *one.beside)])
    tracks = []
    for one in wanted:
        found = {path: infos[path] for path in (*one.sources, *one.beside) if path in infos}
        if len({(info.frames, info.sample_rate) for info in found.values()}) > 1:
            lengths = ", ".join(
                f"{p.relative_to(p.parents[1])} {i.frames} at {i.sample_rate} Hz" for p, i in found.items()
            )
            problems.append(f"{one.place}: lengths in samples differ: {lengths}")
        elif len(found) == len(one.sources) + len(one.beside):
            used = [*one.sources, *([one.mixture] if one.mixture else [])]
            tracks.append(Track(one.name, tuple(one.sources), one.mixture, {path: infos[path] for path in used}))
            if tracks[-1].info.frames == 0:
                problems.append(f"{one.place}: holds no samples")
    if problems:
        raise DataError.of_files(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the data",
            problems,
            f"The layout is {looked_for}; mend or remove these, or name other sources with data.sources.",
        )
    return tracks


def probe_all(paths: Sequence[Path]) -> tuple[dict[Path, Info], list[str]]:
    """Headers of many files: what was found, and `path: reason` for each that is bad."""

    def one(path: Path) -> Info | str:
        try:
            return probe(path) if path.is_file() else "is missing"
        except UnreadableError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = dict(zip(paths, pool.map(one, paths), strict=True))
    infos = {path: result for path, result in results.items() if isinstance(result, Info)}
    return infos, [f"{path}: {result}" for path, result in results.items() if isinstance(result, str)]
