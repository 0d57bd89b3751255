"""A cache of arrays computed from files.  An entry is complete or absent; the least recently used ones are evicted."""

from __future__ import annotations

import hashlib
import json
import math
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
from separate.data.storage.quota import CONTENTS, delete, evict, period
from separate.errors import SeparateError
from separate.files import FULL, digest, replace_file

VERSION = 1  # raise it when other values are computed from the same files, or stored in another form
ENDING = ".npy"
KEY_LENGTH = 64  # characters
MARK = b"separate"  # the last bytes of a complete entry
READAHEAD = 2**19  # bytes of one prefetch request; the system may ignore the rest of a larger one
ABANDONED = 24 * 3600  # seconds after which a half-written entry is deleted


@dataclass(frozen=True)
class Entry:
    """A file of the cache.  facts: its source files, its parameters, and `sha256` of its array."""

    path: Path
    facts: dict[str, Any]
    bytes: int
    used: float  # time of the last use, in seconds since 1970

    def intact(self) -> bool:
        """Whether the array matches its checksum."""
        with self.path.open("rb") as file:
            file.seek(-16, os.SEEK_END)
            length = struct.unpack("<Q", file.read(8))[0]
        return digest(self.path, self.bytes - 16 - length) == self.facts["sha256"]


class Cache:
    """Entries by key, in `folder`, the subfolder `arrays` of a cache folder.

    An entry is an array in NumPy's format, followed by its facts in JSON.  It is written to a temporary file and
    renamed, so that processes and machines can share the folder.
    limit: largest size of the whole cache folder in bytes.
    """

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._added = math.inf  # bytes since the last eviction; the first entry starts one

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{ENDING}"

    def open(self, key: str) -> np.ndarray | None:
        """The memory-mapped array of an entry, or None."""
        try:
            return _mapped(str(self.path(key)))
        except (OSError, ValueError):
            return None

    def identity(self, path: str, content: bool) -> object:
        """The identity of a file: its path, size and modification time, or its content."""
        member = member_of(path)
        if member is None:
            status = os.stat(path)
            stamp = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
            return _content_digest(str(self.folder), *stamp) if content else stamp
        if os.path.exists(f"{member.file}{CONTENTS}"):  # the name of a downloaded shard holds its digest
            return os.path.basename(member.file), *member[1:]
        return [self.identity(member.file, content), *member[1:]]

    def add(
        self, key: str, shape: Sequence[int], dtype: np.dtype, blocks: Iterable[np.ndarray], facts: dict[str, Any]
    ) -> None:
        """Write an array (C, frames, ...) from consecutive blocks (C, n, ...).  SeparateError if the disk is full."""
        path = self.path(key)
        temporary = path.with_name(f"{key}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(temporary, "w+", dtype, tuple(shape))
            end = 0
            for block in blocks:
                start, end = end, end + block.shape[1]
                array[:, start:end] = block
            assert end == shape[1]
            array.flush()
            del array
            sha256 = digest(temporary, temporary.stat().st_size)
            text = json.dumps({**facts, "version": VERSION, "sha256": sha256}).encode()
            with temporary.open("ab") as file:
                file.write(text + struct.pack("<Q", len(text)) + MARK)
                file.flush()
                os.fsync(file.fileno())
                self._added += file.tell()
            temporary.replace(path)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SeparateError(
                f"the disk of the cache {self.folder} is full; free some space, lower cache.limit, name another "
                f"cache.folder, or use cache=none"
            ) from None
        finally:
            with suppress(OSError):
                temporary.unlink()
        if self.limit is not None and self._added > self.limit / 100:  # eviction scans the whole folder
            self._added = 0
            evict(self.folder.parent, self.limit)


@lru_cache(maxsize=256)
def _mapped(path: str) -> np.ndarray:
    """The content of a path never changes, and a mapping outlives its file."""
    array: np.ndarray = np.lib.format.open_memmap(path, "r")
    with suppress(OSError):  # the folder may belong to another user
        os.utime(path)
    return array


def read_frames(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """array[:, start:stop] of an entry, (C, frames, ...), prefetched by few requests.

    Page faults read one page after the other, at a sixth of the speed.
    """
    found: np.ndarray = array[:, start:stop]
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_WILLNEED"):
        mapping: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        row, frame = array.strides[:2]
        for channel in range(len(array)):
            first = array.offset + channel * row + start * frame
            last = first + found.shape[1] * frame
            for offset in range(first - first % mmap.PAGESIZE, last, READAHEAD):
                mapping.madvise(mmap.MADV_WILLNEED, offset, min(READAHEAD, last - offset))
    return found


@lru_cache(maxsize=2**16)
def _content_digest(folder: str, path: str, size: int, time: int) -> str:
    """SHA-256 of a file, stored in the folder under the path, size and time of the file."""
    name = hashlib.sha256(json.dumps([path, size, time]).encode()).hexdigest()
    stored = Path(folder) / "content" / name[:2] / name
    if stored.exists():
        return stored.read_text()
    found = digest(Path(path), size)
    replace_file(stored, found.encode())
    return found


def entries(folder: Path) -> Iterator[Entry]:
    """All complete entries of a folder."""
    for path in sorted(folder.glob(f"??/*{ENDING}")):
        with suppress(OSError, ValueError):
            yield Entry(path, facts_of(path), path.stat().st_size, path.stat().st_mtime)


def facts_of(path: Path) -> dict[str, Any]:
    """The facts of an entry; ValueError if it is not complete."""
    with path.open("rb") as file:
        file.seek(-16, os.SEEK_END)
        length, mark = struct.unpack("<Q8s", file.read(16))
        if mark != MARK:
            raise ValueError(f"{path} is not an entry of the cache")
        file.seek(-16 - length, os.SEEK_END)
        facts: dict[str, Any] = json.loads(file.read(length))
    return facts


def sweep(folder: Path) -> None:
    """Delete half-written entries older than ABANDONED."""
    for path in folder.glob("??/*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def verify(folder: Path) -> tuple[int, list[Path]]:
    """Read every entry and delete the damaged ones -> (number of entries, paths of the damaged ones)."""
    paths = sorted(folder.glob(f"??/*{ENDING}"))
    found = tqdm(entries(folder), "verifying", len(paths), leave=False, disable=None)
    intact = {entry.path for entry in found if entry.intact()}
    damaged = [path for path in paths if path not in intact]
    for path in damaged:
        path.unlink(missing_ok=True)
    return len(paths), damaged


def describe(folder: Path) -> list[str]:
    """Number, size and last use of the entries of each kind, as lines of text."""
    kinds: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries(folder):
        kinds.setdefault((entry.facts["kind"], entry.facts.get("dtype", "")), []).append(entry)
    lines = []
    for (kind, dtype), found in sorted(kinds.items()):
        size, used = sum(entry.bytes for entry in found) / 1e9, period([entry.used for entry in found])
        lines.append(f"  {kind} {dtype}: {len(found)} entries, {size:.3g} GB, used {used}")
    parts = list(folder.glob("??/*.part"))
    if parts:
        lines.append(f"  {len(parts)} being written, or left by a process that was killed")
    return lines


def clear(folder: Path) -> int:
    """Delete all entries, but no other files in the folder; return their number."""
    found = [path for path in folder.glob(f"??/*{ENDING}") if len(path.stem) == KEY_LENGTH]
    for path in [*found, *folder.glob("??/*.part"), *folder.glob("content/??/*")]:
        delete(path)
    for emptied in [*folder.glob("content/??"), folder / "content", *folder.glob("??"), folder]:
        with suppress(OSError):  # it has other files in it
            emptied.rmdir()
    return len(found)
