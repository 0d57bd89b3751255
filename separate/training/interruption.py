"""Ctrl-C and SIGTERM during training: finish the step, save the state, stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from separate.errors import SeparateError

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user asked for a stop.  Raised only where the state is consistent."""


class Stopped(SeparateError):
    """The run was interrupted and its state is saved; the message holds the command that resumes it."""

    exit_code = 130


class Interruption:
    """Signal handler: the first signal asks for a stop after the current step, the second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info(
            "stopping after this step; a second Ctrl-C stops at once and loses the steps since the last checkpoint"
        )

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for.  Call this where the state is consistent."""
        if self.asked:
            raise Interrupted


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle SIGINT and SIGTERM by an `Interruption` within this context."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
