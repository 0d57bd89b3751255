"""Tar shards: what lies in each, listed once; and copies of those behind a URL, fetched while they are needed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from separate.audio import ENDINGS, MOST_CHANNELS, RATES, Info, Member, UnreadableError, member_of, probe
from separate.data.storage.quota import CONTENTS, FREE, SHARDS, LastUse, cache_entries, delete, evict, evict_shards
from separate.errors import DataError, SeparateError, UsageError
from separate.files import FULL, check_name, decode, digest, replace_file
from separate.validation import fits

log = logging.getLogger(__name__)

FORMAT = 1  # raised when what is known changes its form
BLOCK = 2**22  # bytes read at a time
MOST_INDEX = 2**30  # bytes, the most for an index
LARGEST = 2**62  # bytes, so that sums stay below 2^63
LONGEST = 2**40  # samples, so that products with a sample rate stay below 2^63


@dataclass
class Contents:
    """What lies in a shard.  place: its file or URL; sha256: of its bytes, where it was fetched.

    members: [name, offset, size, frames, sample rate, channels, subtype] of each audio file, or [name, offset, size,
    what is wrong with it].
    """

    place: str
    bytes: int
    sha256: str | None
    members: list[list[str | int]]
    format: int = FORMAT

    def __post_init__(self) -> None:
        """ValueError or TypeError for values of another form, or that no tar file can have."""
        if not isinstance(self.place, str) or not fits(self.members, list[list[str | int]]):
            raise TypeError("members")
        check_name(self.place)
        within(0, self.bytes, LARGEST)
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):  # it becomes part of a file name
            raise ValueError(self.sha256)
        for name, offset, size, *header in self.members:
            within(0, offset, LARGEST)
            within(0, size, LARGEST)
            if not isinstance(name, str) or len(header) not in (1, 4):
                raise TypeError(name)
            if len(header) == 4:
                frames, sample_rate, channels, _ = header
                within(0, frames, LONGEST)
                within(RATES[0], sample_rate, RATES[1])
                within(1, channels, MOST_CHANNELS)
            if not isinstance(header[-1], str):
                raise TypeError(name)

    def files(self, file: str) -> Iterator[tuple[str, str, Info | str]]:
        """(name, path, header or what is wrong) of each member, where the shard lies at `file`."""
        for name, offset, size, *header in self.members:
            path = Member(file, int(offset), int(size), str(name)).path
            if len(header) == 1:
                yield str(name), path, str(header[0])
            else:
                frames, sample_rate, channels, subtype = header
                yield str(name), path, Info(int(frames), int(sample_rate), int(channels), str(subtype))


class Shards:
    """Shards in files, and those behind URLs as copies in `root`/shards; called with a path into one, it is there.

    limit: bytes that all of the cache folder `root` may take; None: as many as the disk leaves.
    """

    def __init__(self, root: Path, limit: float | None) -> None:
        self.root = root
        self.folder = root / SHARDS
        self.limit = limit
        self.is_there = LastUse()  # of a shard's file

    def contents(self, place: str, told: Contents | None = None) -> tuple[str, Contents]:
        """The file that a shard is read from, whether or not it is there now, and what lies in it.

        told: what an index says of a shard behind a URL; without it, it is fetched to be looked through.
        """
        if not is_url(place):
            return place, self._of_file(place)
        key = _short(place)
        if told is None:
            known = sorted(self.folder.glob(f"{key}-*{CONTENTS}"), key=lambda path: path.stat().st_mtime)
            for path in reversed(known):
                if found := _remembered(path):
                    return str(path).removesuffix(CONTENTS), found
            part = self.folder / f"{key}.{secrets.token_hex(4)}.part"
            sha256 = self._download(place, part)
            copy = self._copy(place, sha256)
            part.replace(copy)
            told = replace(contents_of(copy, place), sha256=sha256)
        assert told.sha256
        copy = self._copy(place, told.sha256)
        if _remembered(known_of := Path(f"{copy}{CONTENTS}")) is None:
            replace_file(known_of, json.dumps(asdict(told)).encode())
        return str(copy), told

    def __call__(self, path: str) -> None:
        """See that the shard that a path leads into is there; DataError where it cannot be fetched, or has changed."""
        member = member_of(path)
        if member is not None and self.fetches(member.file):
            self.fetch(member.file)

    def fetches(self, file: str) -> bool:
        """Whether it is a copy of what lies behind a URL."""
        return file.startswith(f"{self.folder}/")

    def check_room(self, needed: int, window: int) -> None:
        """UsageError where shards of so many bytes in all cannot be there together."""
        there = sum(entry.bytes for entry in cache_entries(self.root, (SHARDS,)))
        free = there + shutil.disk_usage(self.folder).free - FREE
        if needed > min(free, self.limit or free):
            least = (
                f"cache.limit={self.limit / 1e9:g}" if self.limit and self.limit < free else f"{free / 1e9:.3g} free"
            )
            raise UsageError(
                f"data.window={window} needs {needed / 1e9:.3g} GB for shards that are there together, two to come "
                f"included, and {self.root} has {least} GB; make room there, name another cache.folder, or lower "
                f"data.window"
            )

    def fetch(self, file: str) -> None:
        """Copy a shard to its place, unless it is there; of several processes one does."""
        if self.is_there(file):
            return
        known = _remembered(Path(f"{file}{CONTENTS}"))
        if known is None:
            raise DataError(f"{file} was fetched before and its list of members is gone; start again to fetch it anew")
        with FileLock(f"{file}.lock"):
            if self.is_there(file):
                return
            part = Path(f"{file}.{secrets.token_hex(4)}.part")
            if self._download(known.place, part) != known.sha256:
                part.unlink()
                raise DataError(
                    f"{known.place} is not what it was when it was listed; put it back, or forget what was listed with "
                    f"separate-data cache clear, make its index.jsonl anew if it has one, and start another run"
                )
            part.replace(file)

    def _copy(self, url: str, sha256: str) -> Path:
        names: list[str] = re.findall(r"[\w.-]+\.tar", url)
        return self.folder / f"{_short(url)}-{sha256[:16]}-{names[-1] if names else 'shard.tar'}"

    def _of_file(self, path: str) -> Contents:
        try:
            status = os.stat(path)
        except OSError:
            raise DataError(f"{path}: is missing") from None
        stamp = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
        memory = self.folder / f"{_short(json.dumps(stamp))}{CONTENTS}"
        known = _remembered(memory)
        if known is None:
            known = contents_of(Path(path), path)
            try:
                replace_file(memory, json.dumps(asdict(known)).encode())
            except SeparateError as error:
                log.warning("%s will be listed again next time: %s", path, error)
        return known

    def _download(self, url: str, part: Path) -> str:
        """Write what a URL holds to a file; its SHA-256."""
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
                    f"the disk that the cache {self.root} lies on is full, and nothing is left to drop; make room, or "
                    f"name another cache.folder"
                ) from None
            if isinstance(error, (OSError, ValueError, ImportError)):
                raise DataError(
                    f"{url} could not be fetched ({_reason(error)}); is it there, and are you allowed to read it?"
                ) from None
            raise
        return seen.hexdigest()


def verify_copies(root: Path) -> tuple[int, list[Path]]:
    """Read every fetched shard again and drop those that are not as they came: how many there were, and these."""
    found = [entry.path for entry in cache_entries(root, (SHARDS,))]
    damaged = []
    for file in tqdm(found, "verifying shards", leave=False, disable=None):
        known = _remembered(Path(f"{file}{CONTENTS}"))
        if known is None or digest(file, known.bytes) != known.sha256:
            damaged.append(file)
            delete(file)
    return len(found), damaged


def is_url(place: str) -> bool:
    """Whether it is not the path of a file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", place) is not None


def runs_commands(place: str) -> bool:
    """Whether reading it runs a command line that it holds."""
    return place.lower().startswith("pipe:")


def refuse_commands(data: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """UsageError where reading data that a checkpoint names would run a command that is not in what the user wrote."""
    told, meant = ((one.get("root"), one.get("splits")) for one in (data, written))
    if runs_commands(str(told[0])) and told != meant:
        raise UsageError(
            f"the checkpoint's data are read by running a command, {told[0]}, and a checkpoint is not trusted to run "
            f"any; if you are sure of it, name the data again: data=shards 'data.root=\"{told[0]}\"' and data.splits"
        )


def index_of(root: str) -> dict[str, Contents] | str:
    """{name: contents} of the shards that a URL's index.jsonl lists, or why there is none."""
    from webdataset.gopen import gopen

    where = f"{root}/index.jsonl"
    if runs_commands(root):
        return f"{where} is not read by a command"
    try:
        with gopen(where) as stream:
            content = stream.read(MOST_INDEX + 1)
    except (OSError, ValueError, ImportError) as error:
        return f"{where} could not be read ({_reason(error)})"
    if len(content) > MOST_INDEX:
        raise DataError(f"{where} has more than {MOST_INDEX:,} bytes and is no index of shards")
    found = {}
    try:
        for line in decode(content).split("\n"):
            if not line.strip():
                continue
            entry = json.loads(line)
            if entry["format"] != FORMAT:
                raise DataError(
                    f"{where} is of another version of separate; make it anew with scripts/prepare_shards.py"
                )
            if not isinstance(entry["place"], str):
                raise TypeError(entry["place"])
            one = Contents(**{**entry, "place": f"{root}/{entry['place']}"})
            if one.sha256 is None:
                raise ValueError(one.sha256)
            found[entry["place"]] = one
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{where} is no index of shards; make it with scripts/prepare_shards.py") from None
    return found


def contents_of(file: Path, place: str | None = None) -> Contents:
    """What lies in a file; DataError where the tar file is not whole.  place: what the shard is called."""
    place = place or str(file)
    found: list[list[str | int]] = []
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in audio_in(tar):
                if not 0 <= member.size <= length - member.offset_data:
                    raise tarfile.ReadError(f"{member.name} claims {member.size} bytes, which it does not have")
                row: list[str | int] = [member.name, member.offset_data, member.size]
                try:
                    info = probe(Member(str(file), member.offset_data, member.size, member.name).path)
                    found.append([*row, info.frames, info.sample_rate, info.channels, info.subtype])
                    Contents("", 0, None, found[-1:])
                except (ValueError, TypeError):
                    found[-1] = [*row, "claims a rate, a length or channels that no audio has"]
                except UnreadableError as error:
                    found.append([*row, str(error)])
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends too early")
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, RecursionError) as error:  # of forged headers
        raise DataError(f"{place}: not readable as an uncompressed tar file ({error})") from None
    return Contents(place, length, None, found)


def within(least: int, value: Any, most: float) -> None:
    """ValueError or TypeError for anything but an integer in this range."""
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


def _remembered(path: Path) -> Contents | None:
    try:
        found = Contents(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if found.format == FORMAT else None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _reason(error: Exception) -> str:
    status = re.search(r"exit (-?\d+)", str(error))
    if status:
        return f"the program that reads it ended with status {status[1]}"
    if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename):
        return f"{error.filename} is not installed"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
