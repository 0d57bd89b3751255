"""Map a function over many items in several processes, with a progress bar."""

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
from functools import partial
from multiprocessing import connection
from typing import Any, TypeVar

from tqdm import tqdm

from separate.errors import WORKER_ENDED, SeparateError
from separate.interrupts import ignore_stops, signals_held
from separate.process import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int | str, description: str
) -> list[Result]:
    """work(item) of each item, in order.

    workers: the number of worker processes, auto for one per core; with 0, or few items, this process does the work.
    SeparateErrors of items are raised together after the last item.
    """
    count = len(items)
    processes = min(cores() if workers == "auto" else int(workers), count // 2)
    if processes < 1 or sys.platform != "linux":
        return _collect(map(partial(_guarded, work), items), count, description)
    size = max(1, min(32, count // (8 * processes)))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _start, (work, items))
    try:
        with signals_held():  # a worker must not run this process's handlers before it has its own
            chunks = [pool.submit(_work_on, range(first, min(first + size, count))) for first in range(0, count, size)]
        return _collect((result for chunk in chunks for result in chunk.result()), count, description)
    except BaseException as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # it ignores SIGTERM, and its chunk can take minutes
        if isinstance(error, BrokenProcessPool):
            raise SeparateError(f"{description}: {WORKER_ENDED}; lower the number of workers, or free memory") from None
        raise
    finally:
        pool.shutdown()


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


def _guarded(work: Callable[[Item], Result], item: Item) -> Result | SeparateError:
    """work(item), or its SeparateError as a result, so that it is not pickled with its traceback."""
    try:
        return work(item)
    except SeparateError as error:
        return error


_job: tuple[Callable[[Any], Any], Sequence[Any]]  # the work and all items of this worker process, inherited by the fork


def _start(work: Callable[[Item], Result], items: Sequence[Item]) -> None:
    import torch

    global _job
    _job = work, items
    end_with_parent()
    ignore_stops()  # the program that started it ends it
    torch.set_num_threads(1)


def _work_on(chunk: range) -> list[Any]:
    work, items = _job
    return [_guarded(work, items[number]) for number in chunk]


def end_with_parent() -> None:
    """End this worker process as soon as its parent ends.

    On Linux the kernel kills it; elsewhere a thread waits for the parent to end.  No effect in the main process.
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
