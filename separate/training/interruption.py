"""Stops from outside: Ctrl-C, the signals of batch systems and a time limit.  Finish the step, save the state, exit."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from separate.errors import INTERRUPTED, REQUEUE, SeparateError
from separate.interrupts import STOPS
from separate.process import STARTED
from separate.training.distributed import ALONE, Ranks

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A stop was asked for.  Raised only where the state is consistent."""


class Stopped(SeparateError):
    """The run stopped before its end and its state is saved; the message holds the command that resumes it.

    exit_code: INTERRUPTED after Ctrl-C, REQUEUE where the same command should run again.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interruption:
    """Signal handler and time limit: asks for a stop after the current step.

    A second Ctrl-C stops at once.  Batch systems repeat their signals, so a repeated SIGTERM or SIGUSR1 does not.

    max_hours: wall-clock time of this process until it stops, None for no limit.
    """

    def __init__(self, max_hours: float | None = None, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.deadline = None if max_hours is None else STARTED + 3600 * max_hours
        self.reason: str | None = None
        self.exit_code = REQUEUE

    def __call__(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self.exit_code == INTERRUPTED:
                raise KeyboardInterrupt
            self.exit_code = INTERRUPTED
            log.info(
                "stopping after this step; a second Ctrl-C stops at once and loses the steps since the last checkpoint"
            )
        elif self.reason is None:
            log.info("received %s, stopping after this step", signal.Signals(number).name)
        self.reason = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for, on any rank.  Call this where the state is consistent."""
        if self.deadline is not None and time.monotonic() >= self.deadline and self.reason is None:
            self.reason = "stopped after trainer.max_hours"
        if self.ranks.any(self.reason is not None):
            asked = self.ranks.gather((self.reason, self.exit_code))
            self.reason, self.exit_code = next(one for one in asked if one[0] is not None)
            raise Interrupted


@contextmanager
def interruptible(max_hours: float | None = None, ranks: Ranks = ALONE) -> Iterator[Interruption]:
    """Handle SIGINT, SIGTERM and SIGUSR1 by an `Interruption` within this context.  max_hours: as there."""
    interruption = Interruption(max_hours, ranks)
    before = {number: signal.signal(number, interruption) for number in STOPS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
