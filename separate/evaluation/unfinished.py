"""The scores of finished recordings of an evaluation that was stopped, so that it can go on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from separate.data.batch import Batch
from separate.errors import UsageError
from separate.files import replace_file

FOLDER = "unfinished"
PACKAGES = ("torch", "numpy", "scipy")  # whose versions scores may depend on
PATIENCE = 3.0  # seconds in which scoring processes of a killed evaluation end, which hold its lock
Part = dict[str, Any]  # the scores of one recording as JSON


class Unfinished:
    """The finished recordings of an evaluation, in FOLDER/unfinished/KEY/NUMBER.json.

    facts: everything that the scores depend on beside the samples of the recordings; the key is their hash, and parts
    with other keys are removed.  Use it as a context manager; UsageError if another process evaluates into the folder.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.top = folder / FOLDER
        text = json.dumps(facts, sort_keys=True, default=str)
        self.folder = self.top / hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=12).hexdigest()

    def __enter__(self) -> Unfinished:
        self.created = [place for place in (self.top, *self.top.parents[:3]) if not place.exists()]
        self.top.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.top / "lock")
        try:
            self.lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UsageError(
                f"another separate-eval writes its scores to {self.top.parent}; wait for it, or choose another folder "
                f"with out=DIR"
            ) from None
        for other in self.top.iterdir():
            if other.is_dir() and other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folders that this evaluation has made, unless they hold something."""
        kept = self.folder.is_dir() and any(self.folder.glob("*.json"))
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.top / "lock").unlink(missing_ok=True)
        self.lock.release()
        if not kept:
            with suppress(OSError):  # not empty
                self.top.rmdir()
            for place in self.created[1:]:
                with suppress(OSError):
                    place.rmdir()

    def threads(self, count: int) -> int:
        """The number of threads that the evaluation began with, so that sums are rounded as before; else `count`."""
        path = self.folder / "threads"
        with suppress(OSError, ValueError):
            return int(path.read_bytes())
        replace_file(path, str(count).encode())
        return count

    def numbers(self) -> set[int]:
        """The numbers of the recordings that were finished before."""
        return {int(path.stem) for path in self.folder.glob("*.json")}

    def read(self, number: int, samples: str) -> Part | None:
        """The scores of a recording, or None if there are none for these samples (a digest)."""
        try:
            part: Part = json.loads(self._path(number).read_bytes())
        except (OSError, ValueError):
            return None
        return part if part.get("samples") == samples else None

    def keep(self, number: int, part: Part) -> None:
        replace_file(self._path(number), json.dumps(part).encode())

    def remove(self) -> None:
        """Forget all parts, after the evaluation has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def samples_of(batch: Batch) -> str:
    """A digest of the track's name and the samples of its mixture and sources."""
    found = hashlib.blake2b(repr((batch.tracks, tuple(batch.sources.shape))).encode(errors="backslashreplace"))
    for signal in (batch.mixture, batch.sources):
        found.update(signal.contiguous().numpy().data)
    return found.hexdigest()[:32]


def code_of(packages: Iterable[str]) -> dict[str, str]:
    """{package: digest of its source files, or version} for separate and other packages that take part."""
    found = {name: _sources(name) for name in sorted({"separate", *packages})}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _sources(package: str) -> str:
    """A digest of the Python files of a package or module; empty without any."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return ""
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(path for place in places for path in place.rglob("*.py"))
    if not files and spec is not None and spec.origin:
        files = [Path(spec.origin)]
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        with suppress(OSError):
            found.update(path.name.encode(errors="backslashreplace") + b"\0" + path.read_bytes())
    return found.hexdigest()
