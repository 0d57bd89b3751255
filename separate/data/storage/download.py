"""Copies of tar shards behind URLs, downloaded when they are read and dropped to make room for others."""

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
from separate.data.storage.shard_index import Contents, contents_of, parse_index, remember, remembered, short_digest
from separate.errors import DataError, SeparateError, UsageError
from separate.files import FULL, decode, digest

BLOCK = 2**22  # bytes read at a time
LARGEST_INDEX = 2**30  # bytes


class ShardCopies:
    """Copies in ROOT/shards.  A call with the path of a file in a copy downloads the shard if it is gone.

    root: the cache folder.  limit: its largest size in bytes; None: until the disk is full.
    """

    def __init__(self, root: Path, limit: float | None) -> None:
        self.root = root
        self.folder = root / SHARDS
        self.limit = limit
        self.is_there = LastUse()  # of the file of a copy

    def contents(self, url: str, listed: Contents | None = None) -> tuple[str, Contents]:
        """The path of a shard's copy, whether or not it is there now, and the contents.

        listed: the contents in an index; without them the shard is downloaded and listed.
        """
        key = short_digest(url)
        if listed is None:
            known = sorted(self.folder.glob(f"{key}-*{CONTENTS}"), key=lambda path: path.stat().st_mtime)
            for path in reversed(known):
                if found := remembered(path):
                    return str(path).removesuffix(CONTENTS), found
            part = self.folder / f"{key}.{secrets.token_hex(4)}.part"
            sha256 = self._download(url, part)
            copy = self._copy(url, sha256)
            part.replace(copy)
            listed = replace(contents_of(copy, url), sha256=sha256)
        assert listed.sha256
        copy = self._copy(url, listed.sha256)
        if remembered(_memory(copy)) is None:
            remember(_memory(copy), listed)
        return str(copy), listed

    def __call__(self, path: str) -> None:
        """Download the shard that a file lies in; DataError if that fails, or if the shard has changed."""
        member = member_of(path)
        if member is not None and self.is_copy(member.file):
            self.fetch(member.file)

    def is_copy(self, file: str) -> bool:
        """Whether a shard's file is a copy of one behind a URL."""
        return file.startswith(f"{self.folder}/")

    def check_space(self, needed: int, window: int) -> None:
        """UsageError if there is no space for `needed` bytes of shards at the same time.  window: for the message."""
        there = sum(one.bytes for one in cache_entries(self.root, (SHARDS,)))
        free = there + shutil.disk_usage(self.folder).free - FREE
        if needed <= min(free, self.limit or free):
            return
        least = f"cache.limit={self.limit / 1e9:g}" if self.limit and self.limit < free else f"{free / 1e9:.3g} free"
        raise UsageError(
            f"data.window={window} needs {needed / 1e9:.3g} GB for the shards in use and the next two, and {self.root} "
            f"has {least} GB; make room there, name another cache.folder, or lower data.window"
        )

    def fetch(self, file: str) -> None:
        """Download a shard to its copy, unless that is there.  Of several processes one does."""
        if self.is_there(file):
            return
        known = remembered(_memory(file))
        if known is None:
            raise DataError(f"{file} was fetched before and its list of members is gone; start again to fetch it anew")
        with FileLock(f"{file}.lock"):
            if self.is_there(file):
                return
            part = Path(f"{file}.{secrets.token_hex(4)}.part")
            if self._download(known.place, part) != known.sha256:
                part.unlink()
                raise DataError(
                    f"{known.place} has changed since it was listed; put it back, or forget the list with "
                    f"separate-data cache clear, make its index.jsonl anew if it has one, and start another run"
                )
            part.replace(file)

    def _copy(self, url: str, sha256: str) -> Path:
        names: list[str] = re.findall(r"[\w.-]+\.tar", url)
        return self.folder / f"{short_digest(url)}-{sha256[:16]}-{names[-1] if names else 'shard.tar'}"

    def _download(self, url: str, part: Path) -> str:
        """Write the bytes behind a URL to the file `part`, and return their SHA-256."""
        from webdataset.gopen import gopen

        seen, size = hashlib.sha256(), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with gopen(url) as stream, part.open("wb") as file:
                while block := stream.read(BLOCK):
                    size += len(block)
                    evict(self.root, None if self.limit is None else self.limit - size)
                    evict_shards(self.root, len(block))
                    seen.update(block)
                    file.write(block)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise SeparateError(
                    f"the disk of the cache {self.root} is full, and nothing is left to drop; make room, or name "
                    f"another cache.folder"
                ) from None
            if isinstance(error, (OSError, ValueError, ImportError)):
                raise DataError(
                    f"{url} could not be fetched ({_reason(error)}); is it there, and are you allowed to read it?"
                ) from None
            raise
        return seen.hexdigest()


def _memory(copy: str | Path) -> Path:
    """The file beside a copy that holds its contents and stays when the copy is dropped."""
    return Path(f"{copy}{CONTENTS}")


def verify_copies(root: Path) -> tuple[int, list[Path]]:
    """Read every copy in the cache folder again and drop the damaged ones: the number of all, and the damaged ones."""
    found = [one.path for one in cache_entries(root, (SHARDS,))]
    damaged = []
    for file in tqdm(found, "verifying shards", leave=False, disable=None):
        known = remembered(_memory(file))
        if known is None or digest(file, known.bytes) != known.sha256:
            damaged.append(file)
            delete(file)
    return len(found), damaged


def is_url(place: str) -> bool:
    """Whether a place is a URL, not the path of a file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", place) is not None


def runs_commands(place: str) -> bool:
    """Whether reading a place runs a command line that it holds."""
    return place.lower().startswith("pipe:")


def refuse_commands(data: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """UsageError if reading the data that a checkpoint names would run a command that the user did not write."""
    stored, own = ((one.get("root"), one.get("splits")) for one in (data, written))
    if runs_commands(str(stored[0])) and stored != own:
        raise UsageError(
            f"the checkpoint's data are read by running a command, {stored[0]}, and a checkpoint is not trusted to run "
            f"any; if you trust it, name the data again: data=shards 'data.root=\"{stored[0]}\"' and data.splits"
        )


def index_of(root: str) -> dict[str, Contents] | str:
    """{name: contents} of the shards that a URL's index.jsonl lists, or the reason why there is no index."""
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
    """Why a URL could not be read."""
    status = re.search(r"exit (-?\d+)", str(error))
    if status:
        return f"the program that reads it ended with status {status[1]}"
    if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename):
        return f"{error.filename} is not installed"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
