"""Files that are the old one or the new one, whenever the program stops: written beside, then renamed."""

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
    """A text file, or a path in it, cannot be used; the message is the reason without the file's name."""


FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder(chosen: str | None) -> Path:
    """Where what can be made again is kept: the folder that was chosen, or separate's own in the user's cache."""
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "separate"


def read_text(path: str | Path, most: int = 2**30) -> str:
    """A user's text file, in UTF-8 with or without a byte order mark; TextError for any other file.

    most: bytes that it may have.
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
        raise TextError("is no file")
    if status.st_size > most:
        raise TextError(f"has {status.st_size:,} bytes, more than the {most:,} that are read")
    return decode(content)


def decode(content: bytes) -> str:
    """Text in UTF-8 with or without a byte order mark; TextError for any other bytes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TextError("is text in UTF-16; save it in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(f"is not text in UTF-8 (line {line}); save it in UTF-8") from None
    if "\0" in text:
        raise TextError("holds a zero byte and is no text")
    return text


def check_name(path: str) -> None:
    """TextError for a path that cannot be the name of a file on this system."""
    if "\0" in path:
        raise TextError("has a path with a zero byte")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        if sys.getfilesystemencoding().lower() != "utf-8" and printable(path) == path:
            raise TextError(
                f"has a path, {path}, that the locale cannot name a file by; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            ) from None
        raise TextError(f"has a path, {printable(path)}, that is no valid Unicode") from None


def printable(name: str) -> str:
    """A name as it can be written in UTF-8: bytes of other encodings and other invalid Unicode are escaped."""
    return name.encode(errors="backslashreplace").decode()


def replace_file(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename; SeparateError where the disk is full or does not let us."""
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
            f"{path} could not be written ({reason}); make room or choose another folder. What stood there before "
            f"is unharmed"
        ) from None


def digest(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            found.update(block)
            size -= len(block)
    return found.hexdigest()
