#!/usr/bin/env python3
"""Arrange a downloaded Free Spoken Digit Dataset as speaker pools for `data=pools`.

The data set (Zohar Jackson and contributors, CC BY-SA 4.0) holds recordings/DIGIT_SPEAKER_TAKE.wav: six speakers,
ten digits, 50 takes, 8 kHz.  The script copies them to OUT/SPLIT/SPEAKER/DIGIT_TAKE.wav.  The take decides the
split: 0 to 4 are the test split (tt), as the authors of the data set propose, 10 to 14 the validation split (cv), and
15 and above the training split (tr).

    python scripts/prepare_fsdd.py free-spoken-digit-dataset/recordings data/fsdd
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

TAKES = {"tt": range(0, 5), "cv": range(10, 15), "tr": range(15, 1000)}
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


def plan(recordings: Path, out: Path) -> dict[Path, Path]:
    """{recording: its copy} for every take of a split."""
    places = {}
    for path in sorted(recordings.glob("*.wav")):
        if found := NAME.fullmatch(path.name):
            digit, speaker, take = found[1], found[2], int(found[3])
            for split, takes in TAKES.items():
                if take in takes:
                    places[path] = out / split / speaker / f"{digit}_{take:02d}.wav"
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="the folder `recordings` of the data set")
    parser.add_argument("out", type=Path, help="the folder for tr, cv and tt; a second call continues")
    arguments = parser.parse_args()
    places = plan(arguments.recordings, arguments.out)
    if not places:
        sys.exit(f"{arguments.recordings} holds no files named DIGIT_SPEAKER_TAKE.wav; give the folder `recordings`")
    for source, place in tqdm(places.items(), disable=None):
        if place.exists() and place.stat().st_size == source.stat().st_size:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(place)
    speakers = len({place.parent.name for place in places.values()})
    print(f"{len(places)} recordings of {speakers} speakers: {arguments.out}/{{tr,cv,tt}}/SPEAKER")


if __name__ == "__main__":
    main()
