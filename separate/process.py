"""Process settings for speed on a CPU: memory, threads, workers and denormals."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from separate.interrupts import protect_native_code, signals_held

log = logging.getLogger(__name__)

SWITCH = "SEPARATE_TUNE"  # 0: memory, waiting threads and denormals keep the system's settings
MOST_KEPT = 2**31 - 1  # bytes, the largest value that mallopt accepts
SPINS = 1000  # rounds that a thread spins at a barrier before it sleeps; libgomp's default is 300,000
BRIEF = 0.5  # seconds, too short to measure how busy the cores are
MOST_WORKERS = 8

STARTED = time.monotonic()  # the start of this process, but for the interpreter's own

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def tune() -> None:
    """Apply the settings that must precede the import of torch, unless the user has made them.

    Freed memory: large tensors are allocated on the heap, and up to MOST_KEPT free bytes at its end stay with the
    process.  By default glibc returns each tensor to the system, which fills its pages with zeros at the next step.
    Threads: OpenMP threads spin at a barrier for a short time and then sleep.  By default they spin longer and take the
    cores from other programs.
    """
    if not tuned() or "torch" in sys.modules:
        return
    _started.append(usage())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        _glibc("mallopt", M_MMAP_MAX, 0)
        _glibc("mallopt", M_TRIM_THRESHOLD, MOST_KEPT)


def settle(threads: int | str = "auto") -> None:
    """Set the number of threads and start them, with denormals flushed to zero and signals blocked.

    Denormals (below 1.2e-38) occur in decaying signals, and each takes about 100 cycles.
    """
    import torch

    if tuned():
        torch.set_flush_denormal(True)  # in this thread and the threads that it starts
    with signals_held():
        torch.set_num_threads(thread_count(threads))  # starts threads for XNNPACK
    if threads == "auto" and torch.get_num_threads() < cores():
        log.info("%d of %d cores are used; trainer.threads chooses how many", torch.get_num_threads(), cores())
    protect_native_code()


def release() -> None:
    """Return freed memory to the system."""
    if tuned():
        _glibc("malloc_trim", 0)


def tuned() -> bool:
    """Whether the user left SEPARATE_TUNE on."""
    return os.environ.get(SWITCH) != "0"


def thread_count(asked: int | str) -> int:
    """auto: OMP_NUM_THREADS if it is an integer of at least 1, at most all cores; else the cores that other programs
    have left idle since `tune`.

    Threads wait for each other many times in a step, so one thread more than idle cores slows all of them down.
    """
    if asked != "auto":
        return int(asked)
    try:
        given = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])  # the outermost level of a list
    except ValueError:
        given = 0
    if given >= 1:
        return min(given, cores())
    others = busy_elsewhere(_started[-1], usage()) if _started else 0.0
    return max(1, cores() - round(others))


def worker_count(asked: int | str, gpu: bool = False) -> int:
    """auto: on a GPU all cores but one, at most MOST_WORKERS; on the CPU one if there are two or more cores.

    The processes of a training with torchrun share the cores of their machine.
    """
    if asked != "auto":
        return int(asked)
    spare = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))) - 1
    return min(spare, MOST_WORKERS if gpu else 1)


@dataclass(frozen=True)
class Usage:
    """In seconds: the clock, the time its cores were busy, and the CPU time of this process and its ended children."""

    clock: float
    busy: float
    own: float


def usage() -> Usage:
    """The usage until now; only Linux counts busy cores."""
    times = os.times()
    return Usage(time.monotonic(), _busy(), sum(times[:4]))


def busy_elsewhere(before: Usage, after: Usage) -> float:
    """The number of cores that other programs kept busy between two moments; 0 if these are too close."""
    elapsed = after.clock - before.clock
    if elapsed < BRIEF:
        return 0.0
    return max(0.0, after.busy - before.busy - (after.own - before.own)) / elapsed


def _busy() -> float:
    if sys.platform != "linux":
        return 0.0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in map(str.split, Path("/proc/stat").read_text().splitlines()):
        if name in mine:  # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen by other machines
            ticks += sum(int(count) for place, count in enumerate(counts[:8]) if place not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


_started: list[Usage] = []  # the usage when `tune` was called


def cores() -> int:
    """The number of cores that CPU affinity and container limits leave to this process."""
    from loky import cpu_count

    return int(cpu_count())


def _glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc, if the C library has it."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*arguments)
