"""The same work on many files, in several processes, with a progress bar."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Generic, TypeVar

from tqdm import tqdm

from separate.errors import SeparateError
from separate.interrupts import ignore_stops, signals_held
from separate.process import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int | str, description: str
) -> list[Result]:
    """work(item) of each item, in order.

    workers: processes beside this one, auto for one per core; with 0, or few items, this process does the work.
    A SeparateError of one item is raised when all are done, together with those of the others.
    """
    processes = min(cores() if workers == "auto" else int(workers), len(items) // 2)
    if processes < 1 or sys.platform != "linux":
        return _collect(map(_Guarded(work), items), len(items), description)
    chunk = max(1, min(32, len(items) // (8 * processes)))
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _start)
    try:
        with signals_held():  # or a worker would run this process's handlers before it has its own
            results = pool.map(_Guarded(work), items, chunksize=chunk)
        return _collect(results, len(items), description)
    except BrokenProcessPool:
        raise SeparateError(
            f"{description}: the system ended a worker process, most likely because memory ran out; lower the number "
            f"of workers, or free memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(results: Iterable[Result | SeparateError], count: int, description: str) -> list[Result]:
    found: list[Result] = []
    failed: list[SeparateError] = []
    for result in tqdm(results, description, count, leave=False, disable=None):
        if isinstance(result, SeparateError):
            failed.append(result)
        else:
            found.append(result)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise type(failed[0])("\n".join(dict.fromkeys(map(str, failed))))
    return found


class _Guarded(Generic[Item, Result]):
    """Work whose SeparateError comes back as its result, so that it need not be pickled with its traceback."""

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self.work = work

    def __call__(self, item: Item) -> Result | SeparateError:
        try:
            return self.work(item)
        except SeparateError as error:
            return error


def _start() -> None:
    import torch

    end_with_parent()
    ignore_stops()  # the program that started it ends it
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this worker process as soon as its parent has ended, for whatever reason.

    On Linux the kernel kills it; elsewhere a thread waits for the parent to end.  Does nothing in a process that is
    not a worker.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if not _killed_by_kernel():
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()
    elif os.getppid() != parent.pid:  # the parent ended before the kernel was asked
        os._exit(1)


def _killed_by_kernel() -> bool:
    """Ask the kernel for a SIGKILL when the thread that forked this process ends, and return whether it agreed."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError):  # a C library without it
        return False


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
