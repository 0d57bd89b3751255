#!/usr/bin/env python3
"""Pack a data set into tar shards for `data=shards`, to be read from a server or by seeking in a few large files.

    python scripts/prepare_shards.py OUT data=stems data.root=DIR      # any layout but pools and toy
    python scripts/prepare_shards.py OUT                               # the index of the shards in OUT

Tracks are packed in random order, so that a shard holds unrelated tracks.  Its files are KEY.SOURCE.ENDING and, for a
track with a file of its mixture, KEY.mixture.ENDING.  A source of one file is copied; a sum of files, or a part of
them, is written as 32-bit WAV.  Existing shards are not written again.  OUT/index.jsonl lists the contents of all
shards, so that a training from a URL need not download every shard first.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from separate.audio import read
from separate.compose import from_hydra
from separate.config import DatasetConfig
from separate.data.layouts.base import TrackLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.shards import key_and_source
from separate.data.storage.shard_index import list_contents
from separate.data.tracks import Signal, Track
from separate.errors import SeparateError
from separate.files import digest, replace_file

SEED = 0  # of the order of the tracks


def configuration(overrides: list[str]) -> TrackLayout:
    """The data set of the overrides of separate-data."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("separate.conf", version_base="1.3"):
        config = from_hydra(compose("dataset", overrides), DatasetConfig).data
    if not isinstance(config, TrackLayout):
        sys.exit("name a layout whose mixtures lie in files, e.g. data=stems data.root=DIR")
    return config


def plan(config: TrackLayout, split: str, size: int) -> list[list[Track]]:
    """The tracks of each shard, of about `size` bytes."""
    tracks = config.tracks(split, Opening())
    shards: list[list[Track]] = [[]]
    filled = 0
    for number in np.random.default_rng(SEED).permutation(len(tracks)).tolist():
        track = tracks[number]
        if filled >= size:
            shards.append([])
            filled = 0
        shards[-1].append(track)
        filled += sum(_bytes(signal, track) for signal in track.signals)
    return shards


def _is_copied(signal: Signal, track: Track) -> bool:
    return len(signal) == 1 and track.start == 0 and track.duration is None


def _bytes(signal: Signal, track: Track) -> int:
    if _is_copied(signal, track):
        return Path(signal[0].path).stat().st_size
    rate = track.pieces[0].info.sample_rate
    return 4 * track.length(rate) * max((piece.info.channels for piece in signal), default=1)


def _member(signal: Signal, track: Track) -> tuple[str, bytes]:
    """The ending and the content of the file of a signal."""
    if _is_copied(signal, track):
        path = Path(signal[0].path)
        return path.suffix.lower().lstrip("."), path.read_bytes()
    rate = track.pieces[0].info.sample_rate
    first, frames = track.first(rate), track.length(rate)
    audio = np.zeros((max((piece.info.channels for piece in signal), default=1), frames), np.float32)
    for piece in signal:
        part = read(piece.path, first, max(0, min(frames, piece.info.frames - first)))
        audio[:, : part.shape[1]] += part
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.T, rate, "FLOAT", format="WAV")
    return "wav", buffer.getvalue()


def examples(tracks: list[Track], sources: list[str]) -> Iterator[dict[str, str | bytes]]:
    """The examples of a shard in the form that webdataset writes: {"__key__": key, "SOURCE.ENDING": content}."""
    for track in tracks:
        example: dict[str, str | bytes] = {"__key__": key_of(track)}
        names = [*sources, "mixture"] if track.mixture is not None else sources
        for name, signal in zip(names, track.signals, strict=True):
            ending, content = _member(signal, track)
            example[f"{name}.{ending}"] = content
        yield example


def key_of(track: Track) -> str:
    """The name of a track without dots, since a key ends at the first dot."""
    return track.name.replace(".", "_")


def check_shards(out: Path, split: str, shards: list[list[Track]]) -> None:
    """Exit if two tracks have the same key, or an existing shard does not hold the planned tracks."""
    planned = {f"{split}-{number:06d}.tar": [key_of(track) for track in tracks] for number, tracks in enumerate(shards)}
    keys = list(chain.from_iterable(planned.values()))
    if duplicates := [key for key, count in Counter(keys).items() if count > 1]:
        sys.exit(f"{split} has two tracks named {duplicates[0]}; rename one")
    for place in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(place) as tar:
            found = list(dict.fromkeys(key_and_source(name)[0] for name in tar.getnames()))
        if found != planned.get(place.name):
            sys.exit(f"{place} does not hold the tracks of this data set; remove it, or choose another folder")


def write_shard(place: Path, tracks: list[Track], sources: list[str]) -> None:
    from webdataset import TarWriter

    part = place.with_name(f"{place.name}.part")
    with part.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for example in examples(tracks, sources):
            writer.write(example)
    part.replace(place)


def write_index(out: Path) -> int:
    """Write OUT/index.jsonl of all shards in OUT, and return their number."""
    lines = []
    for shard in tqdm(sorted(out.glob("*.tar")), "index", disable=None):
        contents = replace(list_contents(shard), place=shard.name, sha256=digest(shard, shard.stat().st_size))
        lines.append(json.dumps(asdict(contents)) + "\n")
    replace_file(out / "index.jsonl", "".join(lines).encode())
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for SPLIT-000000.tar ... and index.jsonl")
    parser.add_argument("data", nargs="*", metavar="KEY=VALUE", help="the data set, as for separate-data")
    parser.add_argument("--megabytes", type=float, default=500, help="about the size of a shard (default: 500)")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.data:
            config = configuration(arguments.data)
            arguments.out.mkdir(parents=True, exist_ok=True)
            for split in config.splits:
                shards = plan(config, split, round(1e6 * arguments.megabytes))
                check_shards(arguments.out, split, shards)
                for number, tracks in enumerate(tqdm(shards, split, disable=None)):
                    place = arguments.out / f"{split}-{number:06d}.tar"
                    if not place.exists():
                        write_shard(place, tracks, config.sources)
        count = write_index(arguments.out)
    except SeparateError as error:
        sys.exit(str(error))
    print(f"{count} shards and index.jsonl in {arguments.out}")


if __name__ == "__main__":
    main()
