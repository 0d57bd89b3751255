"""Reports of unexpected exceptions: one sentence for the user, and a file with the traceback."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from separate.errors import RANK_LOST, WORKER_ENDED, RankLost, SeparateError
from separate.files import FULL, replace_file

FAULT = 70  # exit code: EX_SOFTWARE of sysexits.h
TRACEBACK = "traceback.txt"
DEBUG = "SEPARATE_DEBUG"  # environment variable: show tracebacks
LESS_MEMORY = {  # advice after running out of memory
    "separate-train": "lower batch_size, data.excerpt, data.workers or the size of the model",
    "separate-eval": "lower chunk, or free memory",
    "separate-infer": "lower --chunk, or free memory",
    "separate-data": "lower data.workers, or free memory",
}
OUT_OF_MEMORY = re.compile(  # messages of torch on the CPU and on a GPU, and of NumPy in a worker
    "can't allocate memory|[Oo]ut of memory|Unable to allocate|out of shared memory"
)
RANK_ENDED = re.compile("gloo.*(by peer|Timed out|timed out)|NCCL (error|communicator)|ncclRemoteError", re.DOTALL)
LOADER_ENDED = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly$)")


class Fault(SeparateError):
    """A fault of the program or of a package that it uses; the message names the file with the traceback."""

    exit_code = FAULT


def to_user_error(program: str, error: Exception, folder: Path | None = None) -> SeparateError:
    """Convert an exception to an error for the user: a `Fault` if the user cannot mend it.

    The traceback of a fault is written to `folder` if it holds a run, or else to a new temporary folder.
    """
    if isinstance(error, SeparateError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return SeparateError(f"out of memory{_requested_memory(str(error))}; {LESS_MEMORY[program]}")
    if isinstance(error, RuntimeError) and LOADER_ENDED.search(str(error)):
        return SeparateError(f"{WORKER_ENDED}; {LESS_MEMORY[program]}")
    if isinstance(error, RuntimeError) and RANK_ENDED.search(str(error)):
        return RankLost(RANK_LOST)
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        return SeparateError(
            f"torch.compile cannot compile this network on this machine ({_summary(error)}); use trainer.compile=false"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return SeparateError(f"out of memory; {LESS_MEMORY[program]}")
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
        where = f"{error.filename}: " if error.filename else ""
        return SeparateError(f"{where}{error.strerror}; choose another folder, or make room there")
    return Fault(
        f"unexpected {_summary(error)}: a fault of the program or of a package that it uses, not of your command or "
        f"data. {_write(program, error, folder)}; {DEBUG}=1 shows it here"
    )


def _requested_memory(text: str) -> str:
    """The size of the failed allocation, if the message of the exception states it."""
    if found := re.search(r"allocate (\d+) bytes", text):
        return f" ({int(found[1]) / 1e9:.3g} GB requested)"
    found = re.search(r"allocate ([\d.]+ [KMGTPE]i?B)", text)
    return f" ({found[1]} requested)" if found else ""


def _summary(error: Exception) -> str:
    """An exception as `KeyError: 'steps' (mynets.py, line 9)`; for one from a worker, the original exception."""
    text = str(error)
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if "Original Traceback" in text or error.__cause__ is not None:  # from a worker, by torch or multiprocessing
        remote = text if "Original Traceback" in text else str(error.__cause__)
        places += [(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', remote)]
    if "Original Traceback" in text:
        said = text.strip().splitlines()[-1].strip()
    else:
        said = ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])
    own = [place for place in places if f"{os.sep}torch{os.sep}" not in place[0]] or places
    return f"{said} ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else said


def _write(program: str, error: Exception, folder: Path | None) -> str:
    """Write the traceback and return a sentence with its path."""
    content = "\n".join(
        [
            f"{program}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
            f"command: {' '.join(sys.argv)}",
            f"Python {platform.python_version()}, {', '.join(map(_version, ('separate', 'torch', 'numpy')))}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        if folder is None or not (folder / "config.yaml").is_file():
            folder = Path(tempfile.mkdtemp(prefix=f"{program}-"))
        replace_file(folder / TRACEBACK, content.encode(errors="backslashreplace"))
    except (OSError, SeparateError):
        return "The traceback could not be written"
    return f"The traceback is in {folder / TRACEBACK}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of unknown version"
