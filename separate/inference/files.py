"""Separate audio files to stem files, block by block, so that a recording of any length fits into memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
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

Jobs = dict[Path, Path]


def plan(inputs: Sequence[str], out: Path) -> tuple[Jobs, dict[Path, audio.Info]]:
    """{input file: folder for its stems} and their headers; folders stand for the audio files in them.

    UsageError or DataError before anything is computed, naming all that cannot be separated.
    """
    jobs: Jobs = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = [file for file in map(Path, audio_files(path)) if out.resolve() not in file.resolve().parents]
            if not found:
                raise UsageError(f"{path} holds no audio files ({', '.join(audio.ENDINGS)})")
            jobs.update({file: out / file.relative_to(path).with_suffix("") for file in found})
        else:
            jobs[path] = out / path.stem
    headers, problems = Headers().read(list(map(str, jobs)))
    infos = {Path(path): info for path, info in headers.items()}
    for path, info in infos.items():
        if info.frames < 2:
            problems.append(f"{path}: holds {info.frames} samples, and at least 2 are needed to separate anything")
    if problems:
        raise DataError.of_files("nothing was separated, because of", problems, "Mend these or leave them out.")
    taken: dict[Path, Path] = {}
    for path, folder in jobs.items():
        if folder in taken:
            raise UsageError(
                f"{taken[folder]} and {path} would both be written to {folder}; separate them apart with -o"
            )
        taken[folder] = path
        blocking = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
        if blocking:
            raise UsageError(f"{blocking} is a file, so that no stems can be written to {folder}; choose another -o")
    return jobs, infos


def refuse_overwriting(jobs: Jobs, sources: Sequence[str]) -> None:
    """UsageError where a stem would take the place of a file that is to be separated."""
    inputs = {path.resolve() for path in jobs}
    for path, folder in jobs.items():
        for name in sources:
            if (folder / f"{name}.wav").resolve() in inputs:
                raise UsageError(f"a stem of {path} would overwrite the input {folder}/{name}.wav; choose another -o")


def separate_file(
    separator: Separator, path: Path, info: audio.Info, folder: Path, format: str, chunk: float, overlap: float
) -> float:
    """Write FOLDER/SOURCE.wav for each source, as long, at the rate and with the channels of `path`.

    The stems appear all together when they are whole.  The gain that they share comes back: 1, or less where a PCM
    format (pcm16, pcm24; float32 never) would have clipped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stems = [scratch / f"{name}.wav" for name in separator.sources]
        peak = _write_stems(separator, path, info, stems, chunk, overlap)
        gain = 1.0
        if format != "float32":
            gain = min(1.0, CEILING / peak) if peak > 0 else 1.0
            for stem in stems:
                _convert(stem, gain, SUBTYPES[format], info)
        folder.mkdir(exist_ok=True)
        for stem in stems:
            stem.replace(folder / stem.name)
        return gain
    except soundfile.LibsndfileError:  # reading has its own errors
        raise SeparateError(
            f"the stems of {path} could not be written to {folder} (is the disk full?); make room or choose another "
            f"folder with -o; nothing was left half-written"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_stems(
    separator: Separator, path: Path, info: audio.Info, stems: Sequence[Path], chunk: float, overlap: float
) -> float:
    """The stems as float WAV; their largest absolute sample comes back."""
    peak = 0.0
    with ExitStack() as stack:
        files = [
            stack.enter_context(audio.create(stem, info.frames, info.sample_rate, info.channels)) for stem in stems
        ]
        bar = stack.enter_context(
            tqdm(total=round(info.seconds, 1), desc=path.name, unit="s", leave=False, disable=None)
        )

        def read(start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(audio.read(path, start, stop - start))

        for block in separator.blocks(read, info.frames, info.sample_rate, chunk, overlap):
            if not block.isfinite().all():
                raise DataError(f"{path}: the network made NaN or infinite samples of it; nothing was written")
            peak = max(peak, block.abs().max().item())
            for file, estimate in zip(files, block, strict=True):
                file.write(estimate.T.numpy())
            bar.update(block.shape[-1] / info.sample_rate)
    return peak


def _convert(stem: Path, gain: float, subtype: str, info: audio.Info) -> None:
    """Rewrite a float stem in a PCM format."""
    part = stem.with_suffix(".pcm")
    with audio.create(part, info.frames, info.sample_rate, info.channels, subtype) as out:
        for block in _blocks(stem):
            out.write(block * gain)
    part.replace(stem)


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with soundfile.SoundFile(audio.file_name(path)) as file:
        yield from file.blocks(BLOCK, dtype="float32")
