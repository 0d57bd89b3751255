"""Process settings for speed on a CPU: memory, threads, workers and denormals."""

from __future__ import annotations

import ctypes
import os
import sys

from separate.interrupts import protect_native_code, signals_held

SWITCH = "SEPARATE_TUNE"  # 0: memory, waiting threads and denormals keep the system's settings
MOST_KEPT = 2**31 - 1  # bytes, the most that mallopt takes
SPINS = 10_000  # rounds that a thread spins at a barrier before it sleeps; libgomp's default is 300,000
MOST_WORKERS = 8

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def tune() -> None:
    """Apply the settings that must precede the import of torch, unless the user has made them.

    Freed memory: large tensors come from the heap, and up to MOST_KEPT bytes that are free at its end stay with the
    process. By default glibc returns each tensor to the system, which fills its pages with zeros at the next step.
    Threads: OpenMP threads spin at a barrier for a short time and then sleep. By default they spin longer, and take the
    cores from other programs.
    """
    if not tuned() or "torch" in sys.modules:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        _glibc("mallopt", M_MMAP_MAX, 0)
        _glibc("mallopt", M_TRIM_THRESHOLD, MOST_KEPT)


def settle(threads: int | str = "auto") -> None:
    """Set the number of threads and start them, with denormals flushed to zero and signals blocked.

    Denormals (below 1.2e-38) appear where silence decays, and each costs a processor some 100 cycles.
    """
    import torch

    if tuned():
        torch.set_flush_denormal(True)  # in this thread, and so in those that it starts
    with signals_held():
        torch.set_num_threads(thread_count(threads))  # starts threads for XNNPACK
    protect_native_code()


def release() -> None:
    """Return freed memory to the system."""
    if tuned():
        _glibc("malloc_trim", 0)


def tuned() -> bool:
    """Whether the user left SEPARATE_TUNE on."""
    return os.environ.get(SWITCH) != "0"


def thread_count(asked: int | str) -> int:
    """auto: OMP_NUM_THREADS where it is an integer of at least 1, at most all cores; else all cores."""
    if asked != "auto":
        return int(asked)
    try:
        given = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])  # the outermost level of a list
    except ValueError:
        given = 0
    return min(given, cores()) if given >= 1 else cores()


def worker_count(asked: int | str, gpu: bool = False) -> int:
    """auto: for training on a GPU all cores but one, at most MOST_WORKERS; on the CPU one where a core is spare."""
    if asked != "auto":
        return int(asked)
    spare = cores() - 1
    return min(spare, MOST_WORKERS if gpu else 1)


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
