#!/usr/bin/env python3
"""Mix LibriSpeech into LibriMix, from LibriMix's tables of utterances and gains, for `data=librimix`.

The tables are those in the metadata folder of LibriMix.  Their columns are mixture_ID, source_1_path, source_1_gain,
source_2_path, source_2_gain, ... and, for noisy mixtures, noise_path and noise_gain.  Paths are relative to LIBRISPEECH
and to NOISE, the noise of WHAM!.  Output: OUT/wav8k/min/SPLIT/{s1,s2,noise,mix_clean,mix_both}/ID.wav and the tables
OUT/wav8k/min/metadata/mixture_SPLIT_{mix_clean,mix_both}.csv.  A second call continues where the first one stopped.

    python scripts/prepare_librimix.py LIBRISPEECH metadata/libri2mix_{train-clean-100,dev-clean}.csv data/libri2mix
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from separate.audio import frames_at, probe, read_span
from separate.data.storage.parallel import in_parallel
from separate.errors import DataError, SeparateError
from separate.files import replace_file

Row = dict[str, str]


def signals(row: Row, speech: Path, noise: Path | None, rate: int, mode: str) -> dict[str, np.ndarray]:
    """{folder: (T,)} of one mixture: its sources and noise at their gains, and their sums."""
    numbers = [column.split("_")[1] for column in row if column.startswith("source_") and column.endswith("_path")]
    files = {f"s{number}": (speech / row[f"source_{number}_path"], row[f"source_{number}_gain"]) for number in numbers}
    if noise is not None and row.get("noise_path"):
        files["noise"] = (noise / row["noise_path"], row["noise_gain"])
    found = {}
    for name, (path, gain) in files.items():
        if not path.is_file():
            raise DataError(f"{path} is missing; LibriSpeech's folder is the first argument, WHAM!'s noise --noise")
        info = probe(path)
        found[name] = float(gain) * read_span(path, info, 0, frames_at(info, rate), rate, 1)[0]
    speakers = [name for name in found if name != "noise"]
    length = (min if mode == "min" else max)(len(found[name]) for name in speakers)
    for name, audio in found.items():
        if name == "noise" and len(audio) < length:
            audio = np.tile(audio, -(-length // len(audio)))  # repeat noise shorter than the speech
        found[name] = np.pad(audio[:length], (0, length - len(audio[:length])))
    found["mix_clean"] = np.sum([found[name] for name in speakers], axis=0)
    if "noise" in found:
        found["mix_both"] = found["mix_clean"] + found["noise"]
    return found


def mix(row: Row, speech: Path, noise: Path | None, out: Path, rate: int, mode: str) -> list[tuple[str, int]]:
    """Write the files of one mixture that do not exist yet; return [(folder, samples)]."""
    name = f"{row['mixture_ID']}.wav"
    found = signals(row, speech, noise, rate, mode)
    for folder, signal in found.items():
        place = out / folder / name
        if place.exists() and place.stat().st_size > 2 * len(signal):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        soundfile.write(part, signal, rate, "FLOAT", format="WAV")
        part.replace(place)
    return [(folder, len(signal)) for folder, signal in found.items()]


def table(rows: list[Row], made: list[list[tuple[str, int]]], mixture: str, folder: Path) -> bytes | None:
    """The CSV table of one kind of mixture, or None if there are no such mixtures."""
    lengths = [dict(one) for one in made]
    if not all(mixture in one for one in lengths):
        return None
    speakers = sorted(name for name in lengths[0] if name.startswith("s"))
    noisy = ["noise_path"] if mixture == "mix_both" else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["mixture_ID", "mixture_path", *(f"source_{n[1:]}_path" for n in speakers), *noisy, "length"])
    for row, one in zip(rows, lengths, strict=True):
        kinds = [mixture, *speakers, *(["noise"] if noisy else [])]
        paths = [str(folder.absolute() / kind / f"{row['mixture_ID']}.wav") for kind in kinds]
        writer.writerow([row["mixture_ID"], *paths, one[mixture]])
    return text.getvalue().encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, metavar="LIBRISPEECH")
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE", help="NAME_SPLIT.csv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--noise", type=Path, help="folder of WHAM!'s noise (default: only clean mixtures)")
    parser.add_argument("--rate", type=int, default=8000, help="Hz (default: 8000)")
    parser.add_argument("--mode", choices=("min", "max"), default="min", help="length of a mixture (default: min)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    root = arguments.out / f"wav{arguments.rate // 1000}k" / arguments.mode
    for path in arguments.tables:
        split = path.stem.rpartition("_")[2].replace("-clean", "")  # libri2mix_train-clean-100.csv makes train-100
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Row] = list(csv.DictReader(file))
        if not rows or "mixture_ID" not in rows[0] or "source_1_gain" not in rows[0]:
            sys.exit(f"{path} has no columns mixture_ID, source_1_path, source_1_gain ...; give a table of LibriMix")
        common = {"speech": arguments.speech, "noise": arguments.noise, "rate": arguments.rate, "mode": arguments.mode}
        try:
            made = in_parallel(partial(mix, out=root / split, **common), rows, arguments.workers, split)
        except SeparateError as error:
            sys.exit(str(error))
        for mixture in ("mix_clean", "mix_both"):
            content = table(rows, made, mixture, root / split)
            if content:
                replace_file(root / "metadata" / f"mixture_{split}_{mixture}.csv", content)
        print(f"{len(rows)} mixtures in {root / split}", flush=True)


if __name__ == "__main__":
    main()
