"""Separate audio files to stem files, in blocks of constant memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from tqdm import tqdm

from separate import audio
from separate.data.storage.headers import Headers, audio_files
from separate.errors import DataError, SeparateError, UsageError
from separate.separator import Separator

SUBTYPES = {"float32": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}
CEILING = 1 - 2**-15  # the largest sample of 16-bit PCM
BLOCK = 2**18  # samples copied at a time


@dataclass(frozen=True)
class Job:
    """A recording to separate, its header, and the folder of its stems."""

    path: Path
    info: audio.Info
    folder: Path


def plan(inputs: Sequence[str], out: Path) -> list[Job]:
    """The jobs for files, and for all audio files in folders.

    UsageError or DataError, which lists all invalid files.
    """
    folders: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = [file for file in map(Path, audio_files(path)) if out.resolve() not in file.resolve().parents]
            if not found:
                raise UsageError(f"{path} holds no audio files ({', '.join(audio.ENDINGS)})")
            folders.update({file: out / file.relative_to(path).with_suffix("") for file in found})
        else:
            folders[path] = out / path.stem
    headers, problems = Headers().read(list(map(str, folders)))
    for name, info in headers.items():
        if info.frames < 2:
            problems.append(f"{name}: holds {info.frames} samples, and at least 2 are needed to separate anything")
    if problems:
        raise DataError.of_files("nothing was separated, because of", problems, "Repair these files or leave them out.")
    _check_folders(folders)
    return [Job(path, headers[str(path)], folder) for path, folder in folders.items()]


def _check_folders(folders: Mapping[Path, Path]) -> None:
    """UsageError for two recordings with the same folder of stems, and for a file in place of a folder."""
    taken: dict[Path, Path] = {}
    for path, folder in folders.items():
        if folder in taken:
            raise UsageError(
                f"{taken[folder]} and {path} would both be written to {folder}; choose a different -o for each"
            )
        taken[folder] = path
        blocking = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
        if blocking:
            raise UsageError(f"{blocking} is a file, so no stems can be written to {folder}; choose another -o")


def refuse_overwriting(jobs: Sequence[Job], sources: Sequence[str]) -> None:
    """UsageError for a stem that would replace an input."""
    inputs = {job.path.resolve() for job in jobs}
    for job in jobs:
        for name in sources:
            stem = job.folder / f"{name}.wav"
            if stem.resolve() in inputs:
                raise UsageError(f"a stem of {job.path} would overwrite the input {stem}; choose another -o")


def separate_file(separator: Separator, job: Job, format: str, chunk: float, overlap: float) -> float:
    """Write FOLDER/SOURCE.wav for each source with the length, rate and channels of the recording.

    The stems are moved into FOLDER when all are complete.  Returns their common gain: below 1 if PCM (pcm16, pcm24)
    would have clipped, always 1 for float32.  chunk, overlap: seconds.
    """
    folder = job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stems = [scratch / f"{name}.wav" for name in separator.sources]
        peak = _write_stems(separator, job, stems, chunk, overlap)
        gain = 1.0
        if format != "float32":
            gain = CEILING / max(peak, CEILING)
            for stem in stems:
                _convert(stem, gain, SUBTYPES[format], job.info)
        folder.mkdir(exist_ok=True)
        for stem in stems:
            stem.replace(folder / stem.name)
        return gain
    except soundfile.LibsndfileError:  # on writing; errors on reading are DataErrors
        raise SeparateError(
            f"the stems of {job.path} could not be written to {folder} (is the disk full?); make room or choose "
            f"another folder with -o; no partial files were left"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_stems(separator: Separator, job: Job, stems: Sequence[Path], chunk: float, overlap: float) -> float:
    """Write the stems as float WAV and return their largest absolute sample."""
    info, peak = job.info, 0.0
    with ExitStack() as stack:
        files = [
            stack.enter_context(audio.create(stem, info.frames, info.sample_rate, info.channels)) for stem in stems
        ]
        bar = stack.enter_context(
            tqdm(total=round(info.seconds, 1), desc=job.path.name, unit="s", leave=False, disable=None)
        )

        def read(start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(audio.read(job.path, start, stop - start))

        for block in separator.blocks(read, info.frames, info.sample_rate, chunk, overlap):
            if not block.isfinite().all():
                raise DataError(f"{job.path}: the network gives NaN or infinite samples for it; nothing was written")
            peak = max(peak, block.abs().max().item())
            for file, estimate in zip(files, block, strict=True):
                file.write(estimate.T.numpy())
            bar.update(block.shape[-1] / info.sample_rate)
    return peak


def _convert(stem: Path, gain: float, subtype: str, info: audio.Info) -> None:
    """Rewrite a float stem in a PCM format."""
    part = stem.with_suffix(".pcm")
    with (
        soundfile.SoundFile(audio.file_name(stem)) as source,
        audio.create(part, info.frames, info.sample_rate, info.channels, subtype) as out,
    ):
        for block in source.blocks(BLOCK, dtype="float32"):
            out.write(block * gain)
    part.replace(stem)
