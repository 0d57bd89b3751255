#!/usr/bin/env python3
"""Write one song of the built-in toy data as WAV files: its mixture and its stems.

python scripts/write_toy.py OUT    # OUT/mixture.wav, OUT/voice.wav, OUT/chords.wav, OUT/drums.wav
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile

from separate.data.layouts.toy import SECONDS, SOURCES, Toy, ToySongs

RATE = 8000  # Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    layout = Toy(sources=list(SOURCES), sample_rate=RATE, excerpt=SECONDS, tracks={"test": 1})
    song = ToySongs(layout, "test", seed=0).recording(0)
    out.mkdir(parents=True, exist_ok=True)
    for name, audio in zip(("mixture", *SOURCES), song.samples, strict=True):
        soundfile.write(out / f"{name}.wav", audio.T, RATE, subtype="FLOAT")
    print(f"{SECONDS:g} s: {out}/mixture.wav and its sources {', '.join(SOURCES)}")


if __name__ == "__main__":
    main()
