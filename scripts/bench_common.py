"""Common code of the benchmarks: options, rounds in turns, memory of a process, files and a plain data set.

It does not import torch, so that a benchmark can set up the process first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile

Result = TypeVar("Result")
LEAST_ROUNDS = 5


def options(description: str | None, cases: Sequence[str], rounds: int, out: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(cases)

    def case(text: str) -> str:  # argparse's choices would refuse a command without a case
        if text not in cases:
            raise argparse.ArgumentTypeError(f"there is no case {text}; choose from {names}")
        return text

    parser.add_argument("cases", nargs="*", metavar="CASE", type=case, help=f"{names} (default: all)")
    parser.add_argument("--rounds", type=_rounds, default=rounds, help=f"of the median (default: {rounds})")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"JSON file to write (default: {out})")
    return parser


def _rounds(text: str) -> int:
    if int(text) < LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(f"a median needs at least {LEAST_ROUNDS} rounds")
    return int(text)


def in_turns(candidates: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """{name: the results of its calls}; in each round every candidate is called once."""
    results: dict[str, list[Result]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            results[name].append(call())
    return results


def seconds(call: Callable[[], object]) -> float:
    """The duration of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def megabytes(*fields: str, process: int | str = "self", file: str = "status") -> float:
    """The sum of fields of /proc/PROCESS/FILE (Linux only)."""
    lines = map(str.split, Path(f"/proc/{process}/{file}").read_text().splitlines())
    return sum(int(line[1]) for line in lines if line[0].rstrip(":") in fields) / 1024


def write_audio(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write (T,) or (T, C) as 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, sample_rate, "PCM_16")


class PlainExcerpts:
    """A simple data set: read a random excerpt of each source with soundfile, and add the sources up.

    files: the sources of each track, all of `length` samples; frames: samples of an excerpt.
    """

    def __init__(self, files: Sequence[Sequence[Path]], length: int, frames: int) -> None:
        self.files, self.length, self.frames = files, length, frames

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mixture (C, T) and sources (S, C, T)."""
        rng = np.random.default_rng(index)
        track = self.files[int(rng.integers(len(self.files)))]
        start = int(rng.integers(self.length - self.frames))
        signals = [soundfile.read(path, self.frames, start, dtype="float32", always_2d=True)[0].T for path in track]
        sources = np.stack(signals)
        return sources.sum(axis=0), sources

    def loader(self, batch_size: int, workers: int, pin: bool = False) -> Any:
        """A DataLoader of batches (mixtures, sources)."""
        from torch.utils.data import DataLoader

        return DataLoader(self, batch_size, num_workers=workers, pin_memory=pin)  # type: ignore[arg-type]
