"""One job of a sweep: skip it if it is finished, resume it if it was stopped, record it if it fails.

JOB/job.json holds identity, overrides and state; every run writes JOB/result.json at its end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from separate.errors import INTERRUPTED, REQUEUE, SeparateError, UsageError
from separate.files import replace_file
from separate.sweeps.pruning import Pruned

log = logging.getLogger(__name__)

RECORD, LOCK = "job.json", "job.lock"
FAILED = float("nan")  # the value of a failed job for the sweeper


@dataclass
class Record:
    """job.json.  state: started, pruned or failed; reason: a sentence; value: best of the monitored metric so far."""

    identity: str
    overrides: dict[str, str] = field(default_factory=dict)
    state: str = "started"
    reason: str = ""
    exit_code: int = 0
    value: float | None = None

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a job's folder; None if there is none."""
        path = folder / RECORD
        return cls(**json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def write(self, folder: Path) -> None:
        replace_file(folder / RECORD, json.dumps(asdict(self), indent=1).encode(errors="backslashreplace"))


@dataclass(frozen=True)
class Task:
    """A job from Hydra.  number: of the job in this start of the sweep; overrides: KEY=VALUE.

    explain: maps any exception to the error to show.
    """

    identity: str
    number: int
    overrides: Sequence[str]
    train: Callable[[], float | None]
    explain: Callable[[Exception], SeparateError]


def run_task(task: Task, folder: Path) -> float | None:
    """Train in `folder`, unless that was done before, and return the best value of the monitored metric.

    A failure is recorded and logged and returns `FAILED`, so that the other jobs go on.  An interruption is raised.
    """
    before = Record.read(folder)
    if before is not None and before.identity != task.identity:
        raise UsageError(f"{folder} holds a job with another configuration; choose another hydra.sweep.dir")
    done, value = done_value(folder, before)
    if done:
        log.info("job %s was done before, in %s", task.number, folder)
        return value
    try:
        with FileLock(str(folder / LOCK), timeout=0):
            return _train(task, folder)
    except Timeout:
        log.error("job %s is being trained by another process, in %s", task.number, folder)
        return FAILED


def done_value(folder: Path, record: Record | None) -> tuple[bool, float | None]:
    """Whether a job is finished or pruned, and its value."""
    result = folder / "result.json"
    if result.is_file():
        return True, json.loads(result.read_text("utf-8"))["best"]
    if record is not None and record.state == "pruned":
        return True, record.value
    return False, None


def _train(task: Task, folder: Path) -> float | None:
    record = Record(task.identity, dict(map(_split, task.overrides)))
    record.write(folder)
    try:
        return task.train()
    except Pruned as pruned:
        record.state, record.reason, record.value = "pruned", str(pruned), pruned.best
        log.info("job %s: %s", task.number, pruned)
        return pruned.best
    except BrokenPipeError:
        raise
    except Exception as error:
        sentence = task.explain(error)
        if sentence.exit_code in (INTERRUPTED, REQUEUE):
            log.info("repeat the command with hydra.sweep.dir=%s to go on with the sweep", folder.parent)
            raise
        record.state, record.reason, record.exit_code = "failed", str(sentence), sentence.exit_code
        log.error("job %s failed: %s", task.number, sentence)
        return FAILED
    finally:
        record.write(folder)


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value
