#!/usr/bin/env python3
"""Mix WSJ0 into WSJ0-2mix or WSJ0-3mix, for `data=wsj0mix`.

Each line of a list names the utterances of a mixture and their levels in dB, like the lists of the data set:

    wsj0/si_tr_s/01t/01to030v.wav 1.2 wsj0/si_tr_s/02b/02bo0307.wav -1.2

Utterances are normalised to the same active speech level (ITU-T P.56) and then scaled by the levels of the line.
`min` cuts all to the shortest, `max` pads with silence.  One gain for the mixture and its sources sets their largest
peak to 0.9.
Output: OUT/wav8k/min/SPLIT/{mix,s1,s2,...}/NAME.wav, with SPLIT from the name of the list and NAME from the line.  A
second call continues where the first one stopped.

    python scripts/prepare_wsj0mix.py WSJ0 lists/mix_2_spk_{tr,cv,tt}.txt data/wsj0mix
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from separate.audio import frames_at, probe, read_span
from separate.data.storage.parallel import in_parallel
from separate.errors import DataError, SeparateError

PEAK = 0.9
MARGIN = 15.9  # dB between the threshold of activity and the active level (P.56)


def active_level(audio: np.ndarray, sample_rate: int) -> float:
    """RMS of the active parts of speech (T,) by method B of ITU-T P.56; 0 for silence."""
    from scipy.signal import lfilter

    smooth = np.exp(-1 / (0.03 * sample_rate))
    envelope = np.abs(audio)
    for _ in range(2):
        envelope = lfilter([1 - smooth], [1, -smooth], envelope)
    energy = float(np.sum(audio**2))
    if energy == 0:
        return 0.0
    hangover = round(0.2 * sample_rate)
    thresholds = 2.0 ** np.arange(-15, 1)
    levels = []
    for threshold in thresholds:
        last = np.maximum.accumulate(np.where(envelope >= threshold, np.arange(len(audio)), -hangover - 1))
        active = np.count_nonzero(np.arange(len(audio)) - last <= hangover)
        levels.append(10 * np.log10(energy / active) if active else np.inf)
    margins = np.array(levels) - 20 * np.log10(thresholds)
    below = np.flatnonzero(margins <= MARGIN)
    if not len(below) or below[0] == 0 or not np.isfinite(levels[below[0]]):
        return float(np.sqrt(energy / len(audio)))
    at = below[0]  # interpolate between this threshold and the one before it
    share = (margins[at - 1] - MARGIN) / (margins[at - 1] - margins[at])
    return float(10 ** ((levels[at - 1] + share * (levels[at] - levels[at - 1])) / 20))


def parse(line: str) -> list[tuple[str, float]]:
    """[(utterance, dB)] of a line."""
    words = line.split()
    return list(zip(words[::2], map(float, words[1::2]), strict=True))


def mix(line: str, root: Path, out: Path, rate: int, mode: str) -> None:
    """Write one mixture and its sources; the mixture comes last, so its file marks the others as complete."""
    parts = parse(line)
    name = "_".join(f"{Path(path).stem}_{level:g}" for path, level in parts) + ".wav"
    if (out / "mix" / name).exists():
        return
    sources = []
    for path, level in parts:
        file = root / path
        if not file.is_file():
            raise DataError(f"{file} is missing; WSJ0's folder is the first argument")
        info = probe(file)
        audio = read_span(file, info, 0, frames_at(info, rate), rate, 1)[0]
        sources.append(audio * 10 ** (level / 20) / max(active_level(audio, rate), 1e-8))
    length = (min if mode == "min" else max)(map(len, sources))
    sources = [np.pad(audio[:length], (0, length - len(audio[:length]))) for audio in sources]
    mixture = np.sum(sources, axis=0)
    gain = PEAK / max(np.abs(signal).max() for signal in (mixture, *sources))
    folders = [*(f"s{number}" for number in range(1, len(sources) + 1)), "mix"]
    for folder, signal in zip(folders, (*sources, mixture), strict=True):
        place = out / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        soundfile.write(part, gain * signal, rate, "FLOAT", format="WAV")
        part.replace(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="WSJ0", help="folder that the paths in the lists are relative to")
    parser.add_argument(
        "lists", type=Path, nargs="+", metavar="LIST", help="mix_2_spk_tr.txt, ...; the name ends with _SPLIT"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rate", type=int, default=8000, help="Hz (default: 8000)")
    parser.add_argument("--mode", choices=("min", "max"), default="min", help="length of a mixture (default: min)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    for path in arguments.lists:
        split = path.stem.rpartition("_")[2]
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        bad = [number for number, line in enumerate(lines, 1) if not re.fullmatch(r"\s*(\S+\s+-?[\d.]+\s*){2,}", line)]
        if bad:
            sys.exit(f"{path}:{bad[0]}: the line is not UTTERANCE dB UTTERANCE dB ...")
        out = arguments.out / f"wav{arguments.rate // 1000}k" / arguments.mode / split
        work = partial(mix, root=arguments.root, out=out, rate=arguments.rate, mode=arguments.mode)
        try:
            in_parallel(work, lines, arguments.workers, split)
        except SeparateError as error:
            sys.exit(str(error))
        print(f"{len(lines)} mixtures in {out}", flush=True)


if __name__ == "__main__":
    main()
