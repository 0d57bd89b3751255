"""MUSDB18's compressed songs, `.stem.mp4` files of five streams, decoded once with ffmpeg."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from separate.data.layouts.base import Listing, Sought, with_validation
from separate.data.storage.parallel import in_parallel
from separate.data.storage.quota import DECODED, LastUse, evict
from separate.errors import DataError, UsageError
from separate.files import replace_file

STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # in the order of the files
ENDING = ".stem.mp4"
SONG = ".song"  # behind the name of a decoded song's folder: the path that it was decoded from


class Songs:
    """Decoded songs in `root`/decoded, as 32-bit WAV; called with a file of one, it is there.

    limit: bytes that all of the cache folder `root` may take.
    """

    def __init__(self, root: Path, limit: float | None) -> None:
        self.root = root
        self.folder = root / DECODED
        self.limit = limit
        self.is_there = LastUse()

    def __call__(self, path: str) -> None:
        place = Path(path).parent
        if place.parent == self.folder and not self.is_there(str(place)):  # dropped for another training's files
            try:
                self.decode(Path(os.fsdecode(place.with_suffix(SONG).read_bytes())))
            except OSError as error:
                raise DataError(
                    f"{path} was dropped and its song cannot be read again ({error}); start again"
                ) from None

    def decode(self, song: Path) -> Path:
        """The folder of a song's streams, STREAM.wav each, decoded now where it is not there."""
        status = song.stat()
        made_from = [str(song.absolute()), status.st_size, status.st_mtime_ns]
        place = self.folder / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        if not self.is_there(str(place)):
            _decode(song, place)
            replace_file(place.with_suffix(SONG), os.fsencode(song.absolute()))
            evict(self.root, self.limit)
        return place


def list_musdb18(
    root: Path,
    splits: Mapping[str, str],
    split: str,
    sources: Sequence[str],
    mixture: str,
    kept: Songs,
    workers: int | str,
) -> Listing:
    """ROOT/SPLIT/NAME.stem.mp4; MUSDB18's validation tracks are held out of train.

    kept: where the decoded streams are.  mixture: `sum` of the sources, or `file`, the mixture's own stream.
    """
    unknown = [source for source in sources if source not in STREAMS[1:]]
    if unknown:
        raise UsageError(f"data=musdb18 has no source {unknown[0]}; data.sources can name {', '.join(STREAMS[1:])}")
    there, names = with_validation(root, splits, split, _songs)
    songs = [there / f"{name}{ENDING}" for name in names]
    places = dict(zip(songs, in_parallel(kept.decode, songs, workers, "decoding"), strict=True))
    if not all(place.is_dir() for place in places.values()):
        raise UsageError(
            f"the decoded songs of {split} take more than cache.limit={(kept.limit or 0) / 1e9:g} GB, so that they "
            f"would drop each other; raise it"
        )
    return Listing(
        [
            Sought(
                name,
                str(song),
                [[f"{places[song]}/{source}.wav"] for source in sources],
                f"{places[song]}/mixture.wav" if mixture == "file" else None,
            )
            for name, song in zip(names, songs, strict=True)
        ],
        f"{there}/NAME{ENDING}",
    )


def _songs(folder: Path) -> list[str]:
    return sorted(p.name.removesuffix(ENDING) for p in folder.glob(f"*{ENDING}") if not p.name.startswith("."))


def _decode(song: Path, place: Path) -> None:
    """The streams of a song to a folder."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise UsageError(
            "data=musdb18 is decoded with ffmpeg, which is not installed: apt-get install ffmpeg, brew install ffmpeg "
            "or conda install ffmpeg; or take MUSDB18-HQ with data=stems"
        )
    part = place.parent / f"{place.name}.{secrets.token_hex(4)}.part"
    part.mkdir(parents=True)
    try:
        command = [program, "-nostdin", "-v", "error", "-i", str(song)]
        for number, stream in enumerate(STREAMS):
            command += ["-map", f"0:a:{number}", "-c:a", "pcm_f32le", f"{part}/{stream}.wav"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"{song}: ffmpeg could not decode its five streams ({reason}); copy it again")
        with suppress(OSError):  # another process was faster
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
