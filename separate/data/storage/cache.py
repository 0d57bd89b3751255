"""A folder of arrays that were made from files: each is right or absent, whatever stops, and old ones make room."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from separate.audio import member_of
from separate.data.storage.quota import CONTENTS, drop, make_room, period
from separate.errors import SeparateError
from separate.files import FULL, digest, replace_file

VERSION = 1  # raised when what is computed from the same files, or how it is stored, changes
ENDING = ".npy"
KEY = 64  # characters of a key
MARK = b"separate"  # the last bytes of an entry that is whole
AHEAD = 2**19  # bytes that the disk is asked for at once; the system may cut off more
ABANDONED = 24 * 3600  # seconds after which what was begun and not ended is thrown away


@dataclass(frozen=True)
class Entry:
    """A file of the cache.  facts: what it was made from and how, and `sha256` of all before them."""

    path: Path
    facts: dict[str, Any]
    bytes: int
    used: float  # when, in seconds since 1970

    def whole(self) -> bool:
        """Whether it holds what was written."""
        with self.path.open("rb") as file:
            file.seek(-16, os.SEEK_END)
            length = struct.unpack("<Q", file.read(8))[0]
        return digest(self.path, self.bytes - 16 - length) == self.facts["sha256"]


class Cache:
    """Entries by key, in `folder`, which is the arrays' of a cache folder.

    An entry is an array in NumPy's format with its facts behind it, in JSON.  It is written beside its place and
    renamed, so that processes and machines can share the folder.
    limit: bytes of the whole cache folder; beyond them goes what was used longest ago.
    """

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._added = 0

    def place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{ENDING}"

    def open(self, key: str) -> np.ndarray | None:
        """The array of an entry, mapped into memory, or None."""
        try:
            return _mapped(str(self.place(key)))
        except (OSError, ValueError):
            return None

    def identity(self, path: str, content: bool) -> object:
        """What a file is known by: its path, size and time of change, or its content."""
        member = member_of(path)
        if member is None:
            status = os.stat(path)
            known = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
            return _content(str(self.folder), *known) if content else known
        if os.path.exists(f"{member.file}{CONTENTS}"):  # a fetched shard's name holds a digest of it, wherever it lies
            return os.path.basename(member.file), *member[1:]
        return [self.identity(member.file, content), *member[1:]]

    def add(
        self, key: str, shape: Sequence[int], dtype: np.dtype, blocks: Iterable[np.ndarray], facts: dict[str, Any]
    ) -> None:
        """Write an array (C, frames, ...) from blocks (C, n, ...), so many frames as they come to.

        SeparateError where the disk is full.
        """
        place = self.place(key)
        part = place.with_name(f"{key}.{secrets.token_hex(4)}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(part, "w+", dtype, tuple(shape))
            at = 0
            for block in blocks:
                array[:, at : at + block.shape[1]] = block
                at += block.shape[1]
            assert at == shape[1]
            array.flush()
            del array
            text = json.dumps({**facts, "version": VERSION, "sha256": digest(part, part.stat().st_size)}).encode()
            with part.open("ab") as file:
                file.write(text + struct.pack("<Q", len(text)) + MARK)
                file.flush()
                os.fsync(file.fileno())
            part.replace(place)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SeparateError(
                f"the disk that the cache {self.folder} lies on is full; make room, lower cache.limit, name another "
                f"cache.folder, or use cache=none"
            ) from None
        finally:
            with suppress(OSError):
                part.unlink()
        self._make_room(place.stat().st_size)

    def _make_room(self, added: int) -> None:
        """Look at the whole folder each time that a hundredth of the limit was added."""
        self._added += added
        if self.limit is not None and (self._added > self.limit / 100 or self._added == added):
            self._added = 0
            make_room(self.folder.parent, self.limit)


@lru_cache(maxsize=256)
def _mapped(path: str) -> np.ndarray:
    """What a path holds never changes, and a mapping outlives its file."""
    array: np.ndarray = np.lib.format.open_memmap(path, "r")
    with suppress(OSError):  # a folder may be another's
        os.utime(path)
    return array


def part(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """array[:, start:stop] of an entry, (C, frames, ...).

    The disk is asked for all of it beforehand; reading would ask for one page after the other, at a sixth of the speed.
    """
    found: np.ndarray = array[:, start:stop]
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_WILLNEED"):
        mapping: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        row, frame = array.strides[:2]
        for channel in range(len(array)):
            first = array.offset + channel * row + start * frame
            last = first + found.shape[1] * frame
            for place in range(first - first % mmap.PAGESIZE, last, AHEAD):
                mapping.madvise(mmap.MADV_WILLNEED, place, min(AHEAD, last - place))
    return found


@lru_cache(maxsize=2**16)
def _content(folder: str, path: str, size: int, time: int) -> str:
    """SHA-256 of a file, remembered in the folder for as long as the file stays as it is."""
    name = hashlib.sha256(json.dumps([path, size, time]).encode()).hexdigest()
    memory = Path(folder) / "content" / name[:2] / name
    if memory.exists():
        return memory.read_text()
    found = digest(Path(path), size)
    replace_file(memory, found.encode())
    return found


def entries(folder: Path) -> Iterator[Entry]:
    """All entries of a folder that are whole."""
    for path in sorted(folder.glob(f"??/*{ENDING}")):
        with suppress(OSError, ValueError):
            yield Entry(path, facts_of(path), path.stat().st_size, path.stat().st_mtime)


def facts_of(path: Path) -> dict[str, Any]:
    """What an entry was made from; ValueError where it is not whole."""
    with path.open("rb") as file:
        file.seek(-16, os.SEEK_END)
        length, mark = struct.unpack("<Q8s", file.read(16))
        if mark != MARK:
            raise ValueError(f"{path} is no entry")
        file.seek(-16 - length, os.SEEK_END)
        facts: dict[str, Any] = json.loads(file.read(length))
    return facts


def sweep(folder: Path) -> None:
    """Throw away what stopped processes left half-written."""
    for path in folder.glob("??/*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def verify(folder: Path) -> tuple[int, list[Path]]:
    """Read every entry again and drop those that are not as they were written: how many there were, and these."""
    paths = sorted(folder.glob(f"??/*{ENDING}"))
    found = tqdm(entries(folder), "verifying", len(paths), leave=False, disable=None)
    whole = {entry.path for entry in found if entry.whole()}
    damaged = [path for path in paths if path not in whole]
    for path in damaged:
        path.unlink(missing_ok=True)
    return len(paths), damaged


def describe(folder: Path) -> list[str]:
    """How many entries of each kind there are, how large they are and when they were used, as lines of text."""
    kinds: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries(folder):
        kinds.setdefault((entry.facts["kind"], entry.facts.get("dtype", "")), []).append(entry)
    lines = []
    for (kind, dtype), found in sorted(kinds.items()):
        size, used = sum(entry.bytes for entry in found) / 1e9, period([entry.used for entry in found])
        lines.append(f"  {kind} {dtype}: {len(found)} entries, {size:.3g} GB, used {used}")
    half = list(folder.glob("??/*.part"))
    if half:
        lines.append(f"  {len(half)} being written, or left by a process that was killed")
    return lines


def clear(folder: Path) -> int:
    """Throw all entries away, and nothing else that may lie in the folder; their number."""
    found = [path for path in folder.glob(f"??/*{ENDING}") if len(path.stem) == KEY]
    for path in [*found, *folder.glob("??/*.part"), *folder.glob("content/??/*")]:
        drop(path)
    for place in [*folder.glob("content/??"), folder / "content", *folder.glob("??"), folder]:
        with suppress(OSError):  # it holds something else
            place.rmdir()
    return len(found)
