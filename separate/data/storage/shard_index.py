"""The audio files of a tar shard and their headers, listed once and stored."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from separate.audio import ENDINGS, MOST_CHANNELS, RATES, Info, Member, UnreadableError, probe
from separate.data.storage.quota import CONTENTS, SHARDS
from separate.errors import DataError, SeparateError
from separate.files import check_name, replace_file
from separate.validation import fits

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the form of Contents changes
LARGEST = 2**62  # bytes, so that sums stay below 2^63
LONGEST = 2**40  # samples, so that products with a sample rate stay below 2^63


@dataclass
class Contents:
    """The audio files of a shard.  place: its file or URL.  sha256: of the shard, for one behind a URL.

    members: [name, offset, size, frames, sample rate, channels, subtype] of each audio file, or [name, offset, size,
    fault] of an unreadable one.
    """

    place: str
    bytes: int
    sha256: str | None
    members: list[list[str | int]]
    format: int = FORMAT

    def __post_init__(self) -> None:
        """ValueError or TypeError for values of another form or impossible values."""
        if not isinstance(self.place, str) or not fits(self.members, list[list[str | int]]):
            raise TypeError("members")
        check_name(self.place)
        _within(0, self.bytes, LARGEST)
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):  # it becomes part of a file name
            raise ValueError(self.sha256)
        for name, offset, size, *header in self.members:
            _within(0, offset, LARGEST)
            _within(0, size, LARGEST)
            if not isinstance(name, str) or len(header) not in (1, 4):
                raise TypeError(name)
            if len(header) == 4:
                frames, sample_rate, channels, _ = header
                _within(0, frames, LONGEST)
                _within(RATES[0], sample_rate, RATES[1])
                _within(1, channels, MOST_CHANNELS)
            if not isinstance(header[-1], str):
                raise TypeError(name)

    def files(self, file: str) -> Iterator[tuple[str, str, Info | str]]:
        """(name, path, header or fault) of each member.  file: the path of the shard."""
        for name, offset, size, *header in self.members:
            path = Member(file, int(offset), int(size), str(name)).path
            if len(header) == 1:
                yield str(name), path, str(header[0])
            else:
                frames, sample_rate, channels, subtype = header
                yield str(name), path, Info(int(frames), int(sample_rate), int(channels), str(subtype))


def list_contents(file: Path, place: str | None = None) -> Contents:
    """The contents of a tar file; DataError if it is truncated.  place: the name of the shard in messages."""
    place = place or str(file)
    found: list[list[str | int]] = []
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in audio_in(tar):
                if not 0 <= member.size <= length - member.offset_data:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes, beyond the end of the file")
                found.append(_row(file, member))
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends too early")
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, RecursionError) as error:  # of forged headers
        raise DataError(f"{place}: not readable as an uncompressed tar file ({error})") from None
    return Contents(place, length, None, found)


def _row(file: Path, member: tarfile.TarInfo) -> list[str | int]:
    """A member as `Contents` lists it."""
    row: list[str | int] = [member.name, member.offset_data, member.size]
    try:
        info = probe(Member(str(file), member.offset_data, member.size, member.name).path)
        whole = [*row, info.frames, info.sample_rate, info.channels, info.subtype]
        Contents("", 0, None, [whole])
    except UnreadableError as error:
        return [*row, str(error)]
    except (ValueError, TypeError):
        return [*row, "claims a rate, a length or channels that no audio has"]
    return whole


def stored_contents(path: str, root: Path) -> Contents:
    """The contents of a local shard, stored in the cache folder `root` until the file changes."""
    try:
        status = os.stat(path)
    except OSError:
        raise DataError(f"{path}: is missing") from None
    stamp = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
    stored = root / SHARDS / f"{short_digest(json.dumps(stamp))}{CONTENTS}"
    known = read_contents(stored)
    if known is None:
        known = list_contents(Path(path), path)
        try:
            write_contents(stored, known)
        except SeparateError as error:
            log.warning("%s will be listed again next time: %s", path, error)
    return known


def write_contents(path: Path, contents: Contents) -> None:
    replace_file(path, json.dumps(asdict(contents)).encode())


def read_contents(path: Path) -> Contents | None:
    """The contents written by `write_contents`, None without a valid file."""
    try:
        found = Contents(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if found.format == FORMAT else None


def short_digest(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of a text, for file names."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def parse_index(text: str, root: str) -> dict[str, Contents]:
    """{name: contents} of the shards in an index of JSON lines.

    DataError for an index of another version.  Any other fault is a ValueError, KeyError, TypeError or RecursionError.
    """
    found = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        entry = json.loads(line)
        if entry["format"] != FORMAT:
            raise DataError(
                f"{root}/index.jsonl is of another version of separate; make it again with scripts/prepare_shards.py"
            )
        if not isinstance(entry["place"], str):
            raise TypeError(entry["place"])
        contents = Contents(**{**entry, "place": f"{root}/{entry['place']}"})
        if contents.sha256 is None:
            raise ValueError("sha256")
        found[entry["place"]] = contents
    return found


def _within(least: int, value: Any, most: float) -> None:
    """TypeError unless `value` is an integer, ValueError unless it is in the range."""
    if not fits(value, int):
        raise TypeError(value)
    if not least <= value <= most:
        raise ValueError(value)


def audio_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The audio files of a shard, without hidden ones."""
    for member in tar:
        hidden = os.path.basename(member.name).startswith(".")
        if member.isreg() and not hidden and member.name.lower().endswith(ENDINGS):
            yield member
