"""Headers of many audio files: read once in parallel, and stored until a file changes."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from separate.audio import ENDINGS, Info, UnreadableError, impossible, probe
from separate.data.tracks import Files, Piece
from separate.errors import DataError, SeparateError
from separate.files import replace_file

log = logging.getLogger(__name__)

READERS = 8  # threads, which mostly wait for the disk
FORMAT = 3  # raise it when the stored form changes
Key = tuple[str, int, int]  # path, size and modification time of a file


def audio_files(folder: str | Path, deep: bool = True) -> list[str]:
    """The audio files of a folder and, if `deep`, of the folders in it, sorted; hidden ones are left out."""
    return sorted(_walk(str(folder), deep))


def _walk(folder: str, deep: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if deep:
                    yield from _walk(entry.path, deep)
            elif entry.name.lower().endswith(ENDINGS):
                yield entry.path


def folders_in(folder: str | Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


class Headers:
    """Headers by path.  A file is read again if its size or modification time has changed.

    folder: stores the headers for later runs, unless it is None.  root: the folder of the data set; each has its own
    file in `folder`.
    """

    def __init__(self, folder: Path | None = None, root: str | Path = "") -> None:
        name = hashlib.sha256(os.path.abspath(root).encode(errors="surrogateescape")).hexdigest()[:16]
        self.path = folder / f"{name}.npz" if folder else None

    def read(self, paths: Sequence[str]) -> tuple[dict[str, Info], list[str]]:
        """Headers of these files, and `path: reason` for each file whose header cannot be read."""
        known = self._stored()
        paths = list(dict.fromkeys(paths))
        keys: dict[str, Key] = {}
        for path in paths:
            with suppress(OSError):
                status = os.stat(path)
                keys[path] = path, status.st_size, status.st_mtime_ns
        found = {path: known[key] for path, key in keys.items() if key in known}
        unknown = [path for path in paths if path not in found]
        quiet = True if len(unknown) < 1000 else None
        problems = []
        with ThreadPoolExecutor(READERS) as pool:
            results = tqdm(pool.map(_probe, unknown), "reading headers", len(unknown), leave=False, disable=quiet)
            for path, result in zip(unknown, results, strict=True):
                if isinstance(result, Info):
                    found[path] = result
                else:
                    problems.append(f"{path}: {result}")
        fresh = {keys[path]: found[path] for path in unknown if path in found and path in keys}
        self._store({**known, **fresh}, fresh)
        return found, problems

    def _stored(self) -> dict[Key, Info]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            return _unpack(self.path.read_bytes())
        except Exception:  # a damaged archive can fail in any way; it is written again
            log.debug("%s is not a list of headers and is written again", self.path, exc_info=True)
            return {}

    def _store(self, known: dict[Key, Info], fresh: dict[Key, Info]) -> None:
        """Store all headers, of each file only the newest."""
        if self.path is None or not fresh:
            return
        newest = {key[0]: key for key in known}
        try:
            replace_file(self.path, _pack({key: known[key] for key in newest.values()}))
        except SeparateError as error:
            log.warning("the headers of %d files will be read again next time: %s", len(fresh), error)


def audio_pieces(folder: str | None, key: str, stored: Path) -> Files:
    """The audio files under a folder with their headers; none without a folder.  DataError names all unreadable files.

    key: the option that names the folder.  stored: the folder where headers are stored.
    """
    if folder is None:
        return Files([])
    root = Path(folder).expanduser()
    paths = audio_files(root) if root.is_dir() else []
    if not paths:
        raise DataError(f"{key}={folder} is not a folder with audio files")
    infos, problems = Headers(stored, root).read(paths)
    problems += [f"{path}: holds no samples" for path, info in infos.items() if info.frames == 0]
    if problems:
        raise DataError.of_files(f"{len(problems)} bad files in {key}", problems, "Repair or remove them.")
    return Files([Piece(path, infos[path]) for path in paths])


_COLUMNS = ("size", "time", "frames", "sample_rate", "channels", "kind")
_DIGEST = hashlib.sha256().digest_size  # bytes


def _pack(known: dict[Key, Info]) -> bytes:
    """Headers as an archive of NumPy arrays followed by its SHA-256."""
    kinds = sorted({_kind(info) for info in known.values()})
    columns = {
        "size": [size for _, size, _ in known],
        "time": [time for _, _, time in known],
        "frames": [info.frames for info in known.values()],
        "sample_rate": [info.sample_rate for info in known.values()],
        "channels": [info.channels for info in known.values()],
        "kind": [kinds.index(_kind(info)) for info in known.values()],
    }
    stored: dict[str, Any] = {name: np.array(values, np.int64) for name, values in columns.items()}
    stored["paths"] = _bytes("\0".join(path for path, _, _ in known))
    buffer = io.BytesIO()
    np.savez(buffer, format=FORMAT, kinds=_bytes("\0".join(kinds)), **stored)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


def _unpack(content: bytes) -> dict[Key, Info]:
    """The inverse of `_pack`, without headers that are impossible for the size of their file.

    Other contents raise any exception.
    """
    archive, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("the checksum differs")
    with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
        if stored["format"].tolist() != FORMAT:
            return {}
        paths = stored["paths"].tobytes().decode(errors="surrogateescape").split("\0")
        kinds = stored["kinds"].tobytes().decode().split("\0")
        columns = [stored[name] for name in _COLUMNS]
    if any(column.dtype != np.int64 or column.shape != (len(paths),) for column in columns):
        raise ValueError("a column is not a list of whole numbers, one per file")
    if len(paths) and not 0 <= columns[-1].min() <= columns[-1].max() < len(kinds):
        raise ValueError("a kind is out of range")
    known = {}
    for path, size, time, frames, rate, channels, kind in zip(paths, *(c.tolist() for c in columns), strict=True):
        container, subtype = kinds[kind].split(" ")
        info = Info(frames, rate, channels, subtype, container)
        if not impossible(info, size):
            known[path, size, time] = info
    return known


def _kind(info: Info) -> str:
    return f"{info.container} {info.subtype}"


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)


def _probe(path: str) -> Info | str:
    try:
        return probe(Path(path)) if os.path.isfile(path) else "is missing"
    except UnreadableError as error:
        return str(error)
