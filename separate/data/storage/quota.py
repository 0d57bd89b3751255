"""The quota of a cache folder: arrays, decoded songs and downloaded shards, evicted in the order of their last use."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ARRAYS, DECODED, SHARDS = "arrays", "decoded", "shards"  # folders in a cache folder
CONTENTS = ".contents"  # suffix of the file that lists the members of a shard; it stays when the shard is evicted
FREE = 1e9  # bytes of the disk that downloaded shards leave free
NAMES = {  # of entries; other files in these folders are never deleted
    ARRAYS: re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}\.npy"),
    DECODED: re.compile(r"[0-9a-f]{64}"),
    SHARDS: re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-.*\.tar"),
}
TOUCH_INTERVAL = 5.0  # shortest time between two updates of the time of one file, in seconds


class CacheEntry(NamedTuple):
    """A file or folder of the cache.  used: the time of its last use, in seconds since 1970."""

    used: float
    bytes: int
    path: Path


def cache_entries(root: Path, kinds: tuple[str, ...] = (ARRAYS, DECODED, SHARDS)) -> Iterator[CacheEntry]:
    """All entries of these kinds in a cache folder."""
    for kind in kinds:
        for path in (root / kind).glob("??/*" if kind == ARRAYS else "*"):
            if NAMES[kind].fullmatch(path.relative_to(root / kind).as_posix()):
                with suppress(OSError):  # another process deleted it
                    files = list(path.iterdir()) if path.is_dir() else [path]
                    yield CacheEntry(path.stat().st_mtime, sum(file.stat().st_size for file in files), path)


def evict(root: Path, limit: float | None) -> int:
    """Evict the least recently used entries until at most `limit` bytes are left; return how many were evicted."""
    if limit is None:
        return 0
    found = sorted(cache_entries(root))
    return _evict_oldest(found, sum(entry.bytes for entry in found) - limit)


def evict_shards(root: Path, coming: int) -> int:
    """Evict the least recently used shards until `coming` bytes and FREE fit on the disk; return how many."""
    return _evict_oldest(sorted(cache_entries(root, (SHARDS,))), FREE + coming - shutil.disk_usage(root).free)


def _evict_oldest(entries: Sequence[CacheEntry], excess: float) -> int:
    evicted = 0
    for entry in entries:
        if excess <= 0:
            break
        delete(entry.path)
        excess, evicted = excess - entry.bytes, evicted + 1
    return evicted


def describe(root: Path) -> list[str]:
    """Number, size and last use of decoded songs and downloaded shards, as lines of text."""
    lines = []
    for kind, name in ((DECODED, "decoded songs"), (SHARDS, "downloaded shards")):
        found = list(cache_entries(root, (kind,)))
        if found:
            size, times = sum(entry.bytes for entry in found) / 1e9, [entry.used for entry in found]
            lines.append(f"  {name}: {len(found)}, {size:.3g} GB, used {period(times)}")
    return lines


def period(times: Sequence[float]) -> str:
    """The first and last of these times (seconds since 1970) as text."""
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) for seconds in (min(times), max(times)))
    return f"{first} to {last}"


def clear(root: Path) -> int:
    """Delete all songs and shards with their records; return the number of songs and shards."""
    found = list(cache_entries(root, (DECODED, SHARDS)))
    records = [*(root / DECODED).glob("*.song"), *(root / SHARDS).glob(f"*{CONTENTS}"), *(root / SHARDS).glob("*.lock")]
    parts = [*(root / DECODED).glob("*.part"), *(root / SHARDS).glob("*.part")]
    for path in [*(entry.path for entry in found), *records, *parts]:
        delete(path)
    for folder in (root / DECODED, root / SHARDS):
        with suppress(OSError):  # it has other files in it, or does not exist
            folder.rmdir()
    return len(found)


class LastUse:
    """Call with a path to update the modification time of a file, which records its last use, and test if it exists."""

    def __init__(self) -> None:
        self.recorded: dict[str, float] = {}

    def __call__(self, path: str) -> bool:
        now = time.monotonic()
        if now - self.recorded.get(path, -TOUCH_INTERVAL) < TOUCH_INTERVAL:
            return os.path.exists(path)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # the folder may belong to another user
            pass
        self.recorded[path] = now
        return True


def delete(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
