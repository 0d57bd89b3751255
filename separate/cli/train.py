"""separate-train: train a separator from a configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from separate.cli import in_job, run_hydra
from separate.cli.crash_report import to_user_error
from separate.cli.ranks import Job, hand_out, run_rank, started_by_torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from separate.config import TrainConfig
    from separate.training.state import State


def train(cfg: DictConfig) -> float | None:
    """One run; Hydra's sweepers get the best value of the monitored metric."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    trains = not cfg.get("summary") and cfg.get("dump") is None
    job = _job_of_sweep if trains and hydra.mode == RunMode.MULTIRUN else _train
    return in_job("separate-train", lambda: job(cfg, folder), folder)


def _job_of_sweep(cfg: DictConfig, folder: Path) -> float | None:
    """Train a job, unless that was done before; resume it if it was stopped."""
    from hydra.core.hydra_config import HydraConfig

    from separate.sweeps.identity import job_hash
    from separate.sweeps.job import Task, run_task
    from separate.sweeps.pruning import watcher

    hydra = HydraConfig.get()
    task = Task(
        identity=job_hash(cfg),
        number=hydra.job.num,
        overrides=list(hydra.overrides.task),
        train=lambda: _train(cfg, folder, "auto", watcher(Path(hydra.sweep.dir))),
        explain=partial(to_user_error, "separate-train", folder=folder),
    )
    return run_task(task, folder)


def _train(
    cfg: DictConfig,
    folder: Path,
    resume: str | None = None,
    watch: Callable[[State, float], None] | None = None,
) -> float | None:
    """resume: in place of the configuration's; watch: as in `run`."""
    from hydra.core.hydra_config import HydraConfig

    from separate.compose import from_hydra
    from separate.config import TrainConfig
    from separate.training.distributed import current
    from separate.training.run import run

    try:
        config = from_hydra(cfg, TrainConfig)
        if config.summary:
            _summarise(config)
            return None
        if config.dump is not None:
            _replay(config)
            return None
        if resume and not (isinstance(config.resume, str) and not (folder / "checkpoints" / "last.ckpt").exists()):
            config.resume = resume
        job = Job(config, folder, list(HydraConfig.get().overrides.task))
        hand_out(job)
        return run(config, folder, job.changed, watch, current())
    finally:
        if not (folder / "config.yaml").exists():
            _leave_no_trace(folder)
        elif not cfg.get("summary") and cfg.get("dump") is None:
            print(f"run: {folder}", flush=True)


def _summarise(config: TrainConfig) -> None:
    """Print a description of the network instead of training it."""
    from dataclasses import asdict

    from separate.parts import build_separator
    from separate.summary import summary

    print(summary(build_separator(asdict(config))), flush=True)


def _replay(config: TrainConfig) -> None:
    """Run the step of a dump again instead of training."""
    from hydra.core.hydra_config import HydraConfig

    from separate.training.replay import replay

    assert config.dump is not None
    print(replay(config, Path(config.dump), list(HydraConfig.get().overrides.task)), flush=True)


def _leave_no_trace(folder: Path) -> None:
    """Remove the files that Hydra wrote for a refused run, and its folders if they are empty."""
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    (folder / "train.log").unlink(missing_ok=True)
    for place in (folder, *folder.parents[:2]):  # runs/DATE/TIME
        if place != Path.cwd() and place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def main() -> None:
    if started_by_torchrun():
        run_rank("separate-train", lambda: run_hydra("separate-train", train, "train"))
    else:
        run_hydra("separate-train", train, "train")


if __name__ == "__main__":
    main()
