"""Operating system signals: block them in native code and in new processes."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# raised by a thread itself, so never blocked
FAULTS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
# Ctrl-C, and signals of batch systems before they end a job
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def protect_native_code() -> None:
    """Run signal handlers on their own stack.  Call this after the number of threads is set.

    oneDNN before 3.11.2 (torch 2.11 has 3.10.2) points the stack register into the heap in float32 matrix products
    (https://github.com/uxlfoundation/oneDNN/issues/4845), which take up to three quarters of the time of an LSTM on a
    CPU.  Before it runs a signal handler, Linux writes at least 3 kB below that pointer and overwrites the heap: Ctrl-C
    ended in "corrupted size vs. prev_size" or a segmentation fault.  So the main thread gets an alternate signal stack
    for Python's handlers (SA_ONSTACK), and OpenMP's threads start with signals blocked.
    """
    import torch

    if not faulthandler.is_enabled():
        out = sys.__stderr__ or os.open(os.devnull, os.O_WRONLY)
        faulthandler.enable(out)  # sets the alternate stack, and prints a traceback when native code crashes
    with signals_held():
        torch.zeros(2**15 * torch.get_num_threads()).add_(1)  # starts a thread for each 2**15 numbers


@contextmanager
def signals_held() -> Iterator[None]:
    """Block signals within this context.  Threads and processes started in it keep them blocked."""
    if sys.platform == "win32":
        yield
        return
    held = signal.valid_signals() - {getattr(signal, name) for name in FAULTS if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """Ignore `STOPS` and unblock all other signals, in a process started with signals blocked."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
