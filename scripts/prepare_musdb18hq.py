#!/usr/bin/env python3
"""Unpack MUSDB18-HQ and list its 86 training, 14 validation and 50 test tracks in a manifest, for `data=manifest`.

    python scripts/prepare_musdb18hq.py musdb18hq.zip data/musdb18hq

The SHA-256 of the archive is compared with the published one; --skip-checksum allows another archive, e.g. an excerpt.
Complete files are not unpacked again.  An unpacked folder can be given instead of the archive.  OUT/manifest.jsonl
lists the tracks.  `data=stems data.root=OUT` works as well, with the same validation tracks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from separate.data.layouts.held_out import MUSDB18_VALID
from separate.files import replace_file

SHA256 = "baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d"
STEMS = ("vocals", "drums", "bass", "other")
COUNTS = {"train": 86, "valid": 14, "test": 50}


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="checksum") as bar:
        while block := file.read(2**22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def unpack(archive: Path, out: Path) -> None:
    """Unpack every file of train and test that does not exist in full."""
    with zipfile.ZipFile(archive) as packed:
        for member in tqdm([m for m in packed.infolist() if not m.is_dir()], "unpacking"):
            parts = Path(member.filename).parts
            split = next((number for number, part in enumerate(parts) if part in ("train", "test")), None)
            if split is None or len(parts) != split + 3 or ".." in parts or parts[-1].startswith("."):
                continue
            place = out.joinpath(*parts[split:])
            if place.exists() and place.stat().st_size == member.file_size:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_suffix(".part")
            with packed.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            part.replace(place)


def listing(root: Path) -> list[dict[str, Any]]:
    """Entries of a manifest: {"id", "split", "mixture", "sources"}, paths relative to it."""
    entries = []
    for folder in ("train", "test"):
        for track in sorted(path for path in (root / folder).glob("*") if path.is_dir()):
            split = "valid" if folder == "train" and track.name in MUSDB18_VALID else folder
            place = f"{folder}/{track.name}"
            sources = {stem: f"{place}/{stem}.wav" for stem in STEMS}
            entries.append({"id": track.name, "split": split, "mixture": f"{place}/mixture.wav", "sources": sources})
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="musdb18hq.zip, or the folder that it was unpacked to")
    parser.add_argument("out", type=Path)
    parser.add_argument("--skip-checksum", action="store_true")
    arguments = parser.parse_args()
    if not arguments.archive.exists():
        sys.exit(f"{arguments.archive} does not exist; download musdb18hq.zip from its page on Zenodo, record 3338373")
    if arguments.archive.is_dir():
        arguments.out = arguments.archive
    else:
        if not arguments.skip_checksum and (found := checksum(arguments.archive)) != SHA256:
            sys.exit(
                f"{arguments.archive} has SHA-256 {found}, not {SHA256}: the archive is damaged; download it again"
            )
        unpack(arguments.archive, arguments.out)
    entries = listing(arguments.out)
    stems = [arguments.out / path for entry in entries for path in entry["sources"].values()]
    missing = [str(path) for path in stems if not path.exists()]
    if missing:
        sys.exit("\n".join(["stems are missing:", *missing[:50], "unpack the archive again"]))
    replace_file(arguments.out / "manifest.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    for split, expected in COUNTS.items():
        count = sum(entry["split"] == split for entry in entries)
        print(f"{split}: {count} tracks{'' if count == expected else f', MUSDB18-HQ has {expected}'}")
    print(f"separate-train data=manifest data.root={arguments.out}/manifest.jsonl 'data.sources=[{','.join(STEMS)}]'")


if __name__ == "__main__":
    main()
