"""Processes that score recordings while the next one is separated."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch

from separate.data.storage.parallel import end_with_parent
from separate.errors import WORKER_ENDED, SeparateError, UsageError
from separate.interrupts import ignore_stops, signals_held
from separate.process import cores, settle

NICENESS = 10  # of scoring processes: on a CPU they leave the cores to the separation
Work = Callable[[], Any]


def process_count(workers: int | str, recordings: int) -> int:
    """The number of scoring processes, 0 for none.  auto: one for each core but one, at least one."""
    if sys.platform != "linux":  # elsewhere a forked process may not use the libraries of its parent
        return 0
    return min(max(1, cores() - 1) if workers == "auto" else int(workers), recordings)


class ScoringFault(RuntimeError):
    """An unexpected exception while a recording was scored; the message names the recording."""


class RemoteError(Exception):
    """The traceback of an exception in a scoring process."""


@dataclass
class _Child:
    process: Any
    number: int
    track: str


class Processes:
    """Runs each work in a forked process with one thread; at most `count` at a time, or here with a count of 0.

    A forked process has the tensors of its parent, so that nothing is copied to it, and at most `count` + 1 recordings
    are in memory.  Use it as a context manager, which ends the processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.children: dict[connection.Connection, _Child] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.process.kill()
        for receiver, child in self.children.items():
            child.process.join()
            receiver.close()
        self.children.clear()

    def run(self, number: int, track: str, work: Work) -> Iterator[tuple[int, Any]]:
        """Start a work, and yield (number, result) of those that have ended; waits while all processes are busy.

        SeparateError or `ScoringFault`, which name the track, if a work fails or its process dies.
        """
        if self.count == 0:
            with _one_thread():
                outcome = _outcome(work)
            yield number, _result(track, outcome)
            return
        yield from self._collect(self.count - 1)
        with signals_held():  # the process must not run its parent's handlers before it has its own
            receiver, sender = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("fork").Process(target=_child, args=(work, sender), daemon=True)
            process.start()
            self.children[receiver] = _Child(process, number, track)
            sender.close()

    def finish(self) -> Iterator[tuple[int, Any]]:
        """Yield the results of the works that have not ended."""
        yield from self._collect(0)

    def _collect(self, most: int) -> Iterator[tuple[int, Any]]:
        """Yield results until at most `most` processes run, and those that are there already."""
        while self.children:
            ready = connection.wait(list(self.children), None if len(self.children) > most else 0)
            if not ready:
                return
            for receiver in ready:
                assert isinstance(receiver, connection.Connection)
                child = self.children[receiver]
                try:
                    outcome = receiver.recv()
                except (EOFError, OSError):
                    outcome = None
                child.process.join()
                del self.children[receiver]
                receiver.close()
                if outcome is None:
                    raise SeparateError(f"{child.track} was not scored: {WORKER_ENDED}; lower workers, or free memory")
                yield child.number, _result(child.track, outcome)


def _child(work: Work, sender: connection.Connection) -> None:
    end_with_parent()
    ignore_stops()  # the program that started it ends it
    torch.set_num_threads(1)
    os.nice(NICENESS)
    sender.send(_outcome(work))
    sender.close()


@dataclass(frozen=True)
class _Outcome:
    """The result of a work, or what it has raised.  kind: of the exception, None for a result."""

    result: Any = None
    kind: type[Exception] | None = None
    message: str = ""
    trace: str = ""


def _outcome(work: Work) -> _Outcome:
    try:
        return _Outcome(work())
    except SeparateError as error:
        return _Outcome(kind=UsageError if isinstance(error, UsageError) else SeparateError, message=str(error))
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return _Outcome(kind=SeparateError, message="out of memory; lower workers, or free memory")
        said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return _Outcome(kind=ScoringFault, message=f"not scored, {said}", trace=traceback.format_exc())


def _result(track: str, outcome: _Outcome) -> Any:
    if outcome.kind is None:
        return outcome.result
    raise outcome.kind(f"{track}: {outcome.message}") from (RemoteError(outcome.trace) if outcome.trace else None)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as the scoring processes do, so that sums are rounded in the same order."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        settle(before)
