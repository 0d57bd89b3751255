"""The jobs of a sweep, read from their folders, and its settings with mean and deviation over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from separate.config import lookup
from separate.sweeps.identity import ignored
from separate.sweeps.job import LOCK, RECORD, Record

SEED = "seed"
STATES = ("finished", "pruned", "running", "stopped", "failed")


@dataclass
class Job:
    """A job.  state: one of `STATES`; reason: a sentence; epochs: done; value: best of the monitored metric, if any.

    scores: {metric: mean over all sources and tracks}, if the job was scored.
    """

    folder: Path
    overrides: dict[str, str]
    state: str
    reason: str = ""
    exit_code: int = 0
    value: float | None = None
    epochs: int = 0
    minutes: float = 0.0
    monitor: str = "valid/loss"
    upwards: bool = False
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Setting:
    """Jobs that differ only in their seed.  values: {swept key: value}."""

    values: dict[str, str]
    jobs: list[Job]

    def numbers(self, metric: str | None = None) -> list[float]:
        """The finite values of the monitored metric, or of a score, of the finished and pruned jobs."""
        ended = [job for job in self.jobs if job.state in ("finished", "pruned")]
        found = [job.value if metric is None else job.scores.get(metric) for job in ended]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, metric: str | None = None) -> float:
        """NaN if there are no values."""
        numbers = self.numbers(metric)
        return statistics.fmean(numbers) if numbers else math.nan

    def deviation(self, metric: str | None = None) -> float:
        """Standard deviation of the sample; 0 for a single value."""
        numbers = self.numbers(metric)
        return statistics.stdev(numbers) if len(numbers) > 1 else 0.0

    @property
    def pruned(self) -> bool:
        return all(job.state == "pruned" for job in self.jobs)


def read(sweep: Path) -> list[Job]:
    """The jobs in a sweep's folder, by name."""
    return [_read_job(path.parent) for path in sorted(sweep.glob(f"*/{RECORD}"))]


def _read_job(folder: Path) -> Job:
    record = Record.read(folder)
    assert record is not None
    job = Job(folder, record.overrides, record.state, record.reason, record.exit_code, record.value)
    _add_progress(job)
    result = folder / "result.json"
    if result.is_file():
        facts = json.loads(result.read_text("utf-8"))
        job.state, job.reason, job.value = "finished", "", facts["best"]
        job.monitor, job.upwards = facts["monitor"], facts["higher_is_better"]
    elif job.state == "started":
        job.state = "running" if _locked(folder) else "stopped"
    return job


def _add_progress(job: Job) -> None:
    """The epochs done, from the configuration and the log of the run."""
    from separate.evaluation.metrics import METRICS, higher_is_better

    config, log = job.folder / "config.yaml", job.folder / "metrics.jsonl"
    if not config.is_file():
        job.reason = job.reason or "no epoch was done"
        return
    plain: Any = OmegaConf.to_container(OmegaConf.load(config))
    job.monitor = lookup(plain, "trainer.monitor")
    if job.monitor.removeprefix("valid/") in (
        "loss",
        *METRICS,
    ):  # for metrics of other packages, a finished job names the direction
        job.upwards = higher_is_better(job.monitor, METRICS)
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    epochs = [json.loads(line) for line in lines if line.endswith("}")]
    if epochs:
        job.epochs, job.minutes = int(epochs[-1]["epoch"]), float(epochs[-1]["minutes"])
    job.reason = job.reason or f"{job.epochs} of {lookup(plain, 'trainer.epochs')} epochs were done"


def _locked(folder: Path) -> bool:
    """Whether a process trains in this folder."""
    try:
        with FileLock(str(folder / LOCK), timeout=0):
            return False
    except Timeout:
        return True


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys with several values, in the order of the command, without `identity.IGNORED`."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if not ignored(key))
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def settings(jobs: Sequence[Job], metric: str | None = None, upwards: bool | None = None) -> list[Setting]:
    """The jobs grouped by all swept keys but the seed; the best first, those without a value last.

    metric: a score to sort by, in place of the monitored metric; upwards: whether a higher value is better.
    """
    keys = swept_keys(jobs)
    keys = [key for key in keys if key != SEED] or keys
    found: dict[tuple[str, ...], Setting] = {}
    for job in jobs:
        values = {key: job.overrides.get(key, "default") for key in keys}
        found.setdefault(tuple(values.values()), Setting(values, [])).jobs.append(job)
    upwards = direction(jobs) if upwards is None else upwards

    def order(setting: Setting) -> tuple[bool, float]:
        mean = setting.mean(metric)
        return math.isnan(mean), -mean if upwards else mean

    return sorted(found.values(), key=order)


def direction(jobs: Sequence[Job]) -> bool:
    """Whether a higher value of the monitored metric is better, as recorded by a finished job."""
    return next((job.upwards for job in jobs if job.state == "finished"), jobs[0].upwards)
