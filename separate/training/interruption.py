"""Stops by Ctrl-C, by the signals of batch systems and by a time limit: finish the step, save the state, exit."""

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
    """Stop the training now.  Raised only where the state is consistent."""


class Stopped(SeparateError):
    """The run stopped early and has saved its state; the message holds the command to resume it.

    exit_code: INTERRUPTED after Ctrl-C, else REQUEUE: run the same command again.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interruption:
    """Signal handler and time limit; requests a stop after the current step.

    A second Ctrl-C stops at once.  A second SIGTERM or SIGUSR1 does not, because batch systems repeat their signals.

    max_hours: wall-clock limit of this process in hours, None for no limit.
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
            self.exit_code, self.reason = INTERRUPTED, "interrupted"
            log.info(
                "stopping after this step; a second Ctrl-C stops at once and loses the steps since the last checkpoint"
            )
        elif self.reason is None:
            name = signal.Signals(number).name
            log.info("received %s, stopping after this step", name)
            self.reason = f"stopped by {name}"

    def check(self) -> None:
        """Raise `Interrupted` if any rank requests a stop.  Call this where the state is consistent."""
        if self.deadline is not None and time.monotonic() >= self.deadline and self.reason is None:
            self.reason = "stopped after trainer.max_hours"
        if self.ranks.any(self.reason is not None):
            asked = self.ranks.gather((self.reason, self.exit_code))
            self.reason, self.exit_code = next(one for one in asked if one[0] is not None)
            raise Interrupted


@contextmanager
def interruptible(max_hours: float | None = None, ranks: Ranks = ALONE) -> Iterator[Interruption]:
    """Handle SIGINT, SIGTERM and SIGUSR1 by an `Interruption` within this context.  max_hours: as in `Interruption`."""
    interruption = Interruption(max_hours, ranks)
    before = {number: signal.signal(number, interruption) for number in STOPS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
