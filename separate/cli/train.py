"""separate-train: train a separator from a configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from separate.cli import in_job, run_hydra
from separate.cli.ranks import Job, hand_out, run_rank, started_by_torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from separate.config import TrainConfig


def train(cfg: DictConfig) -> float | None:
    """One run; Hydra's sweepers get the best value of the monitored metric."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    return in_job("separate-train", lambda: _train(cfg, folder), folder)


def _train(cfg: DictConfig, folder: Path) -> float | None:
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
        job = Job(config, folder, list(HydraConfig.get().overrides.task))
        hand_out(job)
        return run(config, folder, job.changed, current())
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
