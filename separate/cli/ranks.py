"""A program on several processes of torchrun: the first composes the configuration and hands it to the others."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from separate.cli import reporting_errors
from separate.errors import UsageError
from separate.process import tune

if TYPE_CHECKING:
    from separate.config import TrainConfig

SWEEP = "torchrun starts one training, and this is a sweep; start each of its jobs by torchrun"
_handed_out: list[Job | None] = []


@dataclass
class Job:
    """A training: its configuration, its folder, and the overrides that the user gave."""

    config: TrainConfig
    folder: Path
    changed: list[str]


def started_by_torchrun() -> bool:
    """Whether the environment describes a group of several processes."""
    described = all(name in os.environ for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    return described and int(os.environ.get("WORLD_SIZE", 1)) > 1


def run_rank(program: str, compose_and_run: Callable[[], None]) -> None:
    """Join the group; then compose and run on the first rank, and run the same job on the others.

    Hydra, the run's folder and standard output belong to the first rank.  All other ranks get its job by `hand_out`.
    """
    tune()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else DDP warns of heads that all have a loss
    from separate.training import distributed

    code = 0
    try:
        with reporting_errors(program):
            ranks = distributed.join()
            if {"-m", "--multirun"} & set(sys.argv):
                raise UsageError(SWEEP)
        if ranks.first:
            try:
                compose_and_run()
            finally:
                if not _handed_out:  # --help, or a configuration that was refused
                    hand_out(None)
        else:
            _follow(program)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    distributed.current().leave(code)
    if code:
        raise SystemExit(code)


def hand_out(job: Job | None) -> None:
    """Send the job of the first rank to the others; None if there is none.  UsageError for a second job."""
    from separate.training.distributed import current

    if not current().alone:
        if _handed_out:
            raise UsageError(SWEEP)
        _handed_out.append(job)
        current().of_first(lambda: job)


def _follow(program: str) -> None:
    """Wait for the job of the first rank and run it, without a log."""
    from separate.training.distributed import current
    from separate.training.run import run

    logging.getLogger().addHandler(logging.NullHandler())
    with reporting_errors(program):
        job: Job | None = current().of_first(lambda: None)
    if job is not None:
        with reporting_errors(program, job.folder):
            run(job.config, job.folder, job.changed, ranks=current())
