"""Text files from users, atomic writes, and checksums."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from separate.errors import SeparateError


class TextError(ValueError):
    """A text file, or a path in it, is invalid.  The message states the reason without the name of the file."""


FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a full disk or an exhausted quota


def cache_folder(chosen: str | None) -> Path:
    """The folder for cached data: the chosen one, or `separate` in the user's cache folder."""
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "separate"


def read_text(path: str | Path, most: int = 2**30) -> str:
    """Read a text file in UTF-8, with or without a byte order mark; TextError for any other file.

    most: largest size in bytes.
    """
    check_name(str(path))
    try:
        status = Path(path).stat()
        regular = stat.S_ISREG(status.st_mode)  # reading a pipe would wait
        content = Path(path).read_bytes() if regular and status.st_size <= most else b""
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TextError(reason) from None
    if not regular:
        raise TextError("is not a file")
    if status.st_size > most:
        raise TextError(f"has {status.st_size:,} bytes; at most {most:,} are read")
    return decode(content)


def decode(content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark; TextError for any other bytes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TextError("is text in UTF-16; save it in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(f"is not text in UTF-8 (line {line}); save it in UTF-8") from None
    if "\0" in text:
        raise TextError("holds a zero byte and is not text")
    return text


def check_name(path: str) -> None:
    """TextError for a path that this system cannot open."""
    if "\0" in path:
        raise TextError("has a path with a zero byte")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        if sys.getfilesystemencoding().lower() != "utf-8" and printable(path) == path:
            raise TextError(
                f"has a path, {path}, that the locale cannot encode; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            ) from None
        raise TextError(f"has a path, {printable(path)}, that is not valid Unicode") from None


def printable(name: str) -> str:
    """A name in valid Unicode, with escapes for bytes of other encodings."""
    return name.encode(errors="backslashreplace").decode()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside `path`, then rename it; SeparateError if that fails."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        reason = "the disk is full" if error.errno in FULL else error.strerror
        raise SeparateError(
            f"{path} could not be written ({reason}); make room or choose another folder. The previous file is unharmed"
        ) from None


def digest(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            found.update(block)
            size -= len(block)
    return found.hexdigest()
