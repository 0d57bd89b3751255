"""Stems that any tool wrote, beside their references: FOLDER/TRACK/SOURCE.wav, or any other format of libsndfile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separate import audio
from separate.audio import ENDINGS, Info, UnreadableError
from separate.config import check_sources
from separate.data.batch import Batch, total
from separate.data.storage.parallel import in_parallel
from separate.errors import DataError, UsageError
from separate.files import printable
from separate.stft import STFT

MIXTURE = "mixture"  # name of the file of the mixture beside the references


@dataclass(frozen=True)
class Stem:
    """A file and its header."""

    path: Path
    info: Info

    @property
    def shape(self) -> str:
        info = self.info
        return f"{info.frames} samples of {info.channels} channels at {info.sample_rate} Hz"

    def read(self) -> Tensor:
        """(C, T) float32."""
        return torch.from_numpy(audio.read(self.path, 0, self.info.frames, info=self.info))


@dataclass(frozen=True)
class Track:
    """The files of a track, all of one rate, length and number of channels.  mixture: None for the sum of references"""

    name: str
    references: list[Stem]
    estimates: list[Stem]
    mixture: Stem | None


@dataclass
class Stems:
    """Estimates and references in folders as a candidate.  interchangeable: pair them for the best score.

    left_out: tracks among the estimates without references.
    """

    tracks: list[Track]
    sources: list[str]
    stft: STFT
    interchangeable: bool = False
    method: str = "estimates"
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.tracks)

    def read(self, index: int) -> tuple[Batch, int]:
        track = self.tracks[index]
        sources = torch.stack([stem.read() for stem in track.references]).unsqueeze(0)
        mixture = total(sources) if track.mixture is None else track.mixture.read().unsqueeze(0)
        return Batch(mixture, sources, [track.name], self.stft), track.references[0].info.sample_rate

    def estimate(self, index: int, batch: Batch) -> Tensor:
        return torch.stack([stem.read() for stem in self.tracks[index].estimates]).unsqueeze(0)

    def facts(self) -> list[Any]:
        """Name, size and time of each file of the estimates."""
        files = [stem.path for track in self.tracks for stem in track.estimates]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def mixtures(self) -> str:
        """Where the mixtures come from, for the summary."""
        recorded = sum(track.mixture is not None for track in self.tracks)
        summed = len(self.tracks) - recorded
        if not recorded:
            return "sums of the references"
        return "files beside the references" + (f"; sums of the references in {summed} tracks" if summed else "")


def open_stems(
    estimates: Path, references: Path, stft: STFT, sources: Sequence[str] | None = None, permute: bool = False
) -> Stems:
    """The tracks in a folder of references and their estimates.

    sources: names of the files without ending; None for all that the references have in common.  DataError names every
    file that is missing, unreadable, or of another rate, length or number of channels than its references.
    """
    tracks = _tracks(references, "references")
    given = _tracks(estimates, "estimates")
    listed = {name: _stems(folder) for name, folder in tracks.items()}
    names = list(sources) if sources else _common(listed, references)
    check_sources(names)
    found = in_parallel(partial(_open, tracks, estimates, names), list(tracks), "auto", "reading headers")
    problems = [problem for _, wrong in found for problem in wrong]
    if problems:
        raise DataError.of_files(
            f"{len(problems)} files of stems cannot be scored",
            problems,
            f"Each track needs one file for each of {', '.join(map(printable, names))}, as long as its reference and "
            f"of its rate and channels; data.sources=[...] chooses the sources.",
        )
    opened = [track for track, _ in found if track is not None]
    return Stems(opened, names, stft, permute, left_out=len(set(given) - set(tracks)))


def _tracks(folder: Path, key: str) -> dict[str, Path]:
    """{name: folder} of the tracks."""
    try:
        found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    except OSError as error:
        raise UsageError(f"{key}={folder} cannot be read ({error.strerror}); give a folder") from None
    if key == "references" and not (found := {name: path for name, path in found.items() if _stems(path)}):
        raise UsageError(f"{key}={folder} holds no folders with stems; they are expected in {folder}/TRACK/SOURCE.wav")
    return found


def _stems(folder: Path) -> dict[str, list[Path]]:
    """{name without ending: files} of the audio files in a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in ENDINGS and path.name[0] != ".":
            found.setdefault(path.stem, []).append(path)
    return found


def _common(listed: Mapping[str, Mapping[str, Any]], references: Path) -> list[str]:
    """The sources that all tracks have."""
    names = [name for name in next(iter(listed.values())) if all(name in stems for stems in listed.values())]
    names = [name for name in names if name != MIXTURE]
    if not names:
        raise UsageError(
            f"the tracks in references={references} have no source in common; name them with data.sources=[...]"
        )
    return names


def _open(
    folders: Mapping[str, Path], estimates: Path, names: Sequence[str], track: str
) -> tuple[Track | None, list[str]]:
    """A track, or what is wrong with each of its files."""
    problems: list[str] = []
    references = dict(_probed(folders[track], names, problems))
    given = dict(_probed(estimates / track, names, problems))
    mixture = dict(_probed(folders[track], [MIXTURE], problems)) if MIXTURE in _stems(folders[track]) else {}
    first = next(iter(references.values()), None)
    if first is not None and first.info.frames == 0:
        problems.append(f"{first.path}: has no samples")
    for name, stem in [*references.items(), *mixture.items(), *given.items()]:
        other = references.get(name, first) if stem in given.values() else first
        if other is not None and stem.shape != other.shape:
            problems.append(f"{printable(str(stem.path))}: has {stem.shape}, and {other.path.name} {other.shape}")
    if problems:
        return None, problems
    return Track(track, [references[n] for n in names], [given[n] for n in names], mixture.get(MIXTURE)), []


def _probed(folder: Path, names: Sequence[str], problems: list[str]) -> Iterator[tuple[str, Stem]]:
    """(name, stem) of the files of a folder; adds what is wrong with others to `problems`."""
    files = _stems(folder)
    for name in names:
        paths = files.get(name, [])
        if len(paths) != 1:
            endings = " and ".join(path.suffix for path in paths)
            what = f"is there as {endings}; keep one" if paths else "is missing"
            problems.append(f"{printable(str(folder / name))}{'' if paths else '.wav'}: {what}")
            continue
        try:
            yield name, Stem(paths[0], audio.probe(paths[0]))
        except UnreadableError as error:
            problems.append(f"{printable(str(paths[0]))}: {error}")
