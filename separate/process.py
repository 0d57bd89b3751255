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

TUNE = "SEPARATE_TUNE"  # environment variable; 0: leave memory, waiting threads and denormals as they are
MOST_FREED = 2**31 - 1  # bytes of freed memory that stay with the process: the most that mallopt accepts
SPIN_ROUNDS = 1000  # rounds that a thread spins at a barrier before it sleeps; libgomp's default is 300,000
LEAST_INTERVAL = 0.5  # seconds needed to measure the load of the cores
MOST_WORKERS = 8

STARTED = time.monotonic()  # the start of this process

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def tune() -> None:
    """Apply the settings that must precede the import of torch, unless the user has set them.

    Memory: allocate large tensors on the heap, and keep up to MOST_FREED free bytes at its end.  By default glibc
    returns each tensor to the system, which fills its pages with zeros at the next step.
    Threads: let OpenMP threads spin at a barrier for a short time before they sleep.  By default they spin longer and
    take the cores from other programs.
    """
    if not tuned() or "torch" in sys.modules:
        return
    _started.append(usage())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_ROUNDS))
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        _glibc("mallopt", M_MMAP_MAX, 0)
        _glibc("mallopt", M_TRIM_THRESHOLD, MOST_FREED)


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
    """Whether SEPARATE_TUNE is on."""
    return os.environ.get(TUNE) != "0"


def thread_count(asked: int | str) -> int:
    """The number of threads.  auto: OMP_NUM_THREADS, at most all cores; without it the cores idle since `tune`.

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
    """The number of loader processes.  auto: on a GPU all cores but one, at most MOST_WORKERS; on a CPU at most one.

    The processes of a training with torchrun share the cores of their machine.
    """
    if asked != "auto":
        return int(asked)
    spare = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))) - 1
    return min(spare, MOST_WORKERS if gpu else 1)


@dataclass(frozen=True)
class Usage:
    """In seconds: the clock, the busy time of the cores, and the CPU time of this process and its ended children."""

    clock: float
    busy: float
    own: float


def usage() -> Usage:
    """The usage until now; the busy time is 0 except on Linux."""
    times = os.times()
    return Usage(time.monotonic(), _busy(), sum(times[:4]))


def busy_elsewhere(before: Usage, after: Usage) -> float:
    """The mean number of cores busy with other programs between two measurements; 0 within LEAST_INTERVAL."""
    elapsed = after.clock - before.clock
    if elapsed < LEAST_INTERVAL:
        return 0.0
    return max(0.0, after.busy - before.busy - (after.own - before.own)) / elapsed


def _busy() -> float:
    if sys.platform != "linux":
        return 0.0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in map(str.split, Path("/proc/stat").read_text().splitlines()):
        if name in mine:  # user, nice, system, idle, iowait, irq, softirq, steal
            ticks += sum(int(count) for place, count in enumerate(counts[:8]) if place not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


_started: list[Usage] = []  # the usage when `tune` was called


def cores() -> int:
    """The number of cores available to this process, by CPU affinity and container limits."""
    from loky import cpu_count

    return int(cpu_count())


def _glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc, if the C library has it."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)
