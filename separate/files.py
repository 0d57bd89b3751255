"""Files that are the old one or the new one, whenever the program stops: written beside, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from separate.errors import SeparateError

FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder(chosen: str | None) -> Path:
    """Where what can be made again is kept: the folder that was chosen, or separate's own in the user's cache."""
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "separate"


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
