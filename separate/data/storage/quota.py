"""What a cache folder holds that can be made again: arrays, decoded songs, fetched shards; what is old makes room."""

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
CONTENTS = ".contents"  # behind a shard's name: what is known of it, whether or not it is there
FREE = 1e9  # bytes of the disk that fetched shards leave free
NAMES = {  # what is dropped, and nothing else that may lie there
    ARRAYS: re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}\.npy"),
    DECODED: re.compile(r"[0-9a-f]{64}"),
    SHARDS: re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-.*\.tar"),
}
OFTEN = 5.0  # seconds after which something is noted to be used again


class Kept(NamedTuple):
    """used: when last, in seconds since 1970; place: a file, or a folder of files."""

    used: float
    bytes: int
    place: Path


def kept(root: Path, kinds: tuple[str, ...] = (ARRAYS, DECODED, SHARDS)) -> Iterator[Kept]:
    """All that can be dropped from a cache folder."""
    for kind in kinds:
        for place in (root / kind).glob("??/*" if kind == ARRAYS else "*"):
            if NAMES[kind].fullmatch(place.relative_to(root / kind).as_posix()):
                with suppress(OSError):  # dropped by another process in this moment
                    files = list(place.iterdir()) if place.is_dir() else [place]
                    yield Kept(place.stat().st_mtime, sum(file.stat().st_size for file in files), place)


def make_room(root: Path, limit: float | None) -> int:
    """Drop what was used longest ago until at most `limit` bytes are left; the number dropped."""
    if limit is None:
        return 0
    found = sorted(kept(root))
    return _drop_oldest(found, sum(one.bytes for one in found) - limit)


def make_free(root: Path, coming: int) -> int:
    """Drop the shards that were used longest ago, so that FREE bytes of the disk stay free after `coming` more."""
    return _drop_oldest(sorted(kept(root, (SHARDS,))), FREE + coming - shutil.disk_usage(root).free)


def _drop_oldest(found: Sequence[Kept], excess: float) -> int:
    dropped = 0
    for one in found:
        if excess <= 0:
            break
        drop(one.place)
        excess, dropped = excess - one.bytes, dropped + 1
    return dropped


def describe(root: Path) -> list[str]:
    """How many songs and shards there are, how large they are and when they were used, as lines of text."""
    lines = []
    for kind, name in ((DECODED, "decoded songs"), (SHARDS, "fetched shards")):
        found = list(kept(root, (kind,)))
        if found:
            size, times = sum(one.bytes for one in found) / 1e9, [one.used for one in found]
            lines.append(f"  {name}: {len(found)}, {size:.3g} GB, used {period(times)}")
    return lines


def period(times: Sequence[float]) -> str:
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(one)) for one in (min(times), max(times)))
    return f"{first} to {last}"


def clear(root: Path) -> int:
    """Throw away all songs and shards and what is known of them; how many songs and shards there were."""
    found = list(kept(root, (DECODED, SHARDS)))
    noted = [*(root / DECODED).glob("*.song"), *(root / SHARDS).glob(f"*{CONTENTS}"), *(root / SHARDS).glob("*.lock")]
    parts = [*(root / DECODED).glob("*.part"), *(root / SHARDS).glob("*.part")]
    for place in [*(one.place for one in found), *noted, *parts]:
        drop(place)
    for folder in (root / DECODED, root / SHARDS):
        with suppress(OSError):  # it holds something else, or is not there
            folder.rmdir()
    return len(found)


class Uses:
    """Called with a path, whether it is there; its use is noted, so that others are dropped before it."""

    def __init__(self) -> None:
        self.noted: dict[str, float] = {}

    def __call__(self, path: str) -> bool:
        now = time.monotonic()
        if now - self.noted.get(path, -OFTEN) < OFTEN:
            return os.path.exists(path)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # a folder may be another's
            pass
        self.noted[path] = now
        return True


def drop(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()
