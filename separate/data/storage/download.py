"""Local copies of tar shards behind URLs, downloaded when they are read and evicted when space is needed."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from separate.audio import member_of
from separate.data.storage.quota import CONTENTS, FREE, SHARDS, LastUse, cache_entries, delete, evict, evict_shards
from separate.data.storage.shard_index import (
    Contents,
    list_contents,
    parse_index,
    read_contents,
    short_digest,
    write_contents,
)
from separate.errors import DataError, SeparateError, UsageError
from separate.files import FULL, decode, digest

BLOCK = 2**22  # bytes read at a time
LARGEST_INDEX = 2**30  # bytes


class ShardCopies:
    """Copies in ROOT/shards.  Call with the path of a file in a copy to download the shard if the copy was evicted.

    root: the cache folder.  limit: its largest size in bytes; None: the free space of the disk.
    """

    def __init__(self, root: Path, limit: float | None) -> None:
        self.root = root
        self.folder = root / SHARDS
        self.limit = limit
        self.exists = LastUse()

    def contents(self, url: str, listed: Contents | None = None) -> tuple[str, Contents]:
        """The path of a shard's copy, which may have been evicted, and the contents.

        listed: the contents in an index; without them the shard is downloaded and listed.
        """
        key = short_digest(url)
        if listed is None:
            known = sorted(self.folder.glob(f"{key}-*{CONTENTS}"), key=lambda path: path.stat().st_mtime)
            for path in reversed(known):
                if found := read_contents(path):
                    return str(path).removesuffix(CONTENTS), found
            part = self.folder / f"{key}.{secrets.token_hex(4)}.part"
            sha256 = self._download(url, part)
            copy = self._copy(url, sha256)
            part.replace(copy)
            listed = replace(list_contents(copy, url), sha256=sha256)
        assert listed.sha256
        copy = self._copy(url, listed.sha256)
        if read_contents(_contents_path(copy)) is None:
            write_contents(_contents_path(copy), listed)
        return str(copy), listed

    def __call__(self, path: str) -> None:
        """Download the shard of a file; DataError if that fails or the shard has changed."""
        member = member_of(path)
        if member is not None and self.is_copy(member.file):
            self.fetch(member.file)

    def is_copy(self, file: str) -> bool:
        """Whether a shard is a copy of one behind a URL."""
        return file.startswith(f"{self.folder}/")

    def check_space(self, needed: int, window: int) -> None:
        """UsageError if `needed` bytes of shards do not fit at the same time.  window: for the message."""
        present = sum(entry.bytes for entry in cache_entries(self.root, (SHARDS,)))
        free = present + shutil.disk_usage(self.folder).free - FREE
        if needed <= min(free, self.limit or free):
            return
        space = f"cache.limit={self.limit / 1e9:g}" if self.limit and self.limit < free else f"{free / 1e9:.3g} free"
        raise UsageError(
            f"data.window={window} needs {needed / 1e9:.3g} GB for the shards in use and the next two, and {self.root} "
            f"has {space} GB; free some space, name another cache.folder, or lower data.window"
        )

    def fetch(self, file: str) -> None:
        """Download a shard unless its copy exists; only one of several processes does."""
        if self.exists(file):
            return
        known = read_contents(_contents_path(file))
        if known is None:
            raise DataError(f"the list of members of {file} was deleted; start again to download the shard")
        with FileLock(f"{file}.lock"):
            if self.exists(file):
                return
            part = Path(f"{file}.{secrets.token_hex(4)}.part")
            if self._download(known.place, part) != known.sha256:
                part.unlink()
                raise DataError(
                    f"{known.place} has changed since it was listed; restore it, or delete the list with separate-data "
                    f"cache clear, make its index.jsonl again if it has one, and start a new run"
                )
            part.replace(file)

    def _copy(self, url: str, sha256: str) -> Path:
        names: list[str] = re.findall(r"[\w.-]+\.tar", url)
        return self.folder / f"{short_digest(url)}-{sha256[:16]}-{names[-1] if names else 'shard.tar'}"

    def _download(self, url: str, part: Path) -> str:
        """Write the content of a URL to the file `part` and return its SHA-256."""
        from webdataset.gopen import gopen

        sha256, size = hashlib.sha256(), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with gopen(url) as stream, part.open("wb") as file:
                while block := stream.read(BLOCK):
                    size += len(block)
                    evict(self.root, None if self.limit is None else self.limit - size)
                    evict_shards(self.root, len(block))
                    sha256.update(block)
                    file.write(block)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise SeparateError(
                    f"the disk of the cache {self.root} is full and has no shard left to evict; free some space, or "
                    f"name another cache.folder"
                ) from None
            if isinstance(error, (OSError, ValueError, ImportError)):
                raise DataError(
                    f"{url} could not be downloaded ({_reason(error)}); check that it exists and that you may read it"
                ) from None
            raise
        return sha256.hexdigest()


def _contents_path(copy: str | Path) -> Path:
    """The file with the contents of a copy, which stays when the copy is evicted."""
    return Path(f"{copy}{CONTENTS}")


def verify_copies(root: Path) -> tuple[int, list[Path]]:
    """Read every copy and delete the damaged ones -> (number of copies, paths of the damaged ones)."""
    found = [entry.path for entry in cache_entries(root, (SHARDS,))]
    damaged = []
    for file in tqdm(found, "verifying shards", leave=False, disable=None):
        known = read_contents(_contents_path(file))
        if known is None or digest(file, known.bytes) != known.sha256:
            damaged.append(file)
            delete(file)
    return len(found), damaged


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", place) is not None


def runs_commands(place: str) -> bool:
    """Whether a place is a command line, which reading it runs."""
    return place.lower().startswith("pipe:")


def refuse_commands(data: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """UsageError if the data of a checkpoint are read by a command and the user did not write the same command.

    data: the keys of the data with those of the checkpoint.  written: the keys that the user wrote.
    """
    stored, own = ((keys.get("root"), keys.get("splits")) for keys in (data, written))
    if runs_commands(str(stored[0])) and stored != own:
        raise UsageError(
            f"the checkpoint's data are read by the command {stored[0]}, and a checkpoint may not run commands; if you "
            f"trust it, name the data again: data=shards 'data.root=\"{stored[0]}\"' and data.splits"
        )


def index_of(root: str) -> dict[str, Contents] | str:
    """{name: contents} of the shards in the index.jsonl of a URL, or why it cannot be read."""
    from webdataset.gopen import gopen

    where = f"{root}/index.jsonl"
    if runs_commands(root):
        return f"{where} is not read by a command"
    try:
        with gopen(where) as stream:
            content = stream.read(LARGEST_INDEX + 1)
    except (OSError, ValueError, ImportError) as error:
        return f"{where} could not be read ({_reason(error)})"
    if len(content) > LARGEST_INDEX:
        raise DataError(f"{where} has more than {LARGEST_INDEX:,} bytes, too many for an index of shards")
    try:
        return parse_index(decode(content), root)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{where} is not an index of shards; make it with scripts/prepare_shards.py") from None


def _reason(error: Exception) -> str:
    """The reason of an error in reading a URL."""
    status = re.search(r"exit (-?\d+)", str(error))
    if status:
        return f"the program that reads it ended with status {status[1]}"
    if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename):
        return f"{error.filename} is not installed"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
