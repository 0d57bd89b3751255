#!/usr/bin/env python3
"""Draw the spectrograms of a mixture and, side by side, of each reference stem and its estimate.

    python scripts/draw_stems.py separated/toy separated/mixture scripts/demo.png

Every file of ESTIMATES is compared with the file of the same name in REFERENCES, which also holds mixture.wav.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from separate.stft import STFT

FLOOR = -60  # dB re the loudest bin of the mixture
STEPS = 20  # colours of 3 dB each
PALETTE = 128  # colours of the PNG, text included; few keep the file small


def decibels(path: Path, seconds: float) -> np.ndarray:
    """The level (F, N) of the first seconds of a file in dB, channels averaged."""
    audio, _ = soundfile.read(path, round(seconds * soundfile.info(path).samplerate), dtype="float32", always_2d=True)
    power = STFT(512, 128)(torch.from_numpy(audio.T)).abs().square().mean(dim=0)
    return (10 * power.clamp_min(1e-12).log10()).numpy()


def draw(references: Path, estimates: Path, seconds: float) -> Figure:
    """A row for the mixture, and one for each source: reference on the left, estimate on the right."""
    names = sorted(path.stem for path in estimates.glob("*.wav"))
    files = {"mixture": references / "mixture.wav"}
    for name in names:
        files[f"{name}: reference"] = references / f"{name}.wav"
        files[f"{name}: estimate"] = estimates / f"{name}.wav"
    levels = {title: decibels(path, seconds) for title, path in files.items()}
    top = levels["mixture"].max()
    rate = soundfile.info(files["mixture"]).samplerate
    length = min(seconds, soundfile.info(files["mixture"]).duration)

    figure = Figure(figsize=(9, 1.75 * (len(names) + 1)), layout="constrained")
    colours = colormaps["magma"].resampled(STEPS)
    rows: list[Any] = [["mixture", "."], *([f"{name}: reference", f"{name}: estimate"] for name in names)]
    axes: dict[str, Any] = figure.subplot_mosaic(rows, sharex=True, sharey=True)
    for title, axis in axes.items():
        image = axis.imshow(
            levels[title] - top, vmin=FLOOR, vmax=0, cmap=colours, interpolation="nearest",
            origin="lower", aspect="auto", extent=(0.0, length, 0.0, rate / 2000),
        )  # fmt: skip
        axis.set_title(title, fontsize=10, parse_math=False)
        bottom = title == "mixture" or title in rows[-1]
        axis.tick_params(labelbottom=bottom)
        if title in [row[0] for row in rows]:
            axis.set_ylabel("frequency (kHz)", fontsize=8)
        if bottom:
            axis.set_xlabel("time (s)", fontsize=9)
    figure.colorbar(image, ax=list(axes.values()), label="level (dB re loudest bin of the mixture)", shrink=0.7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path, help="folder with mixture.wav and a WAV file for each source")
    parser.add_argument("estimates", type=Path, help="folder that separate-infer wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds from the start (default: 4)")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in arguments.estimates.glob("*.wav"))
    if not names:
        sys.exit(f"{arguments.estimates} holds no WAV files; give the folder that separate-infer wrote")
    missing = [name for name in ("mixture", *names) if not (arguments.references / f"{name}.wav").is_file()]
    if missing:
        sys.exit(f"{arguments.references} has no {missing[0]}.wav; give the folder of the mixture and its true stems")
    drawn = io.BytesIO()
    draw(arguments.references, arguments.estimates, arguments.seconds).savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(PALETTE).save(arguments.picture, optimize=True)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
