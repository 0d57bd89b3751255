"""Loggers of a run behind one interface: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from separate.config import LoggerConfig
from separate.errors import UsageError
from separate.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class Logger(ABC):
    """Records metrics, figures and audio of a run.  step: the number of training steps done."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name; they may be NaN or infinite."""

    @abstractmethod
    def figure(self, tag: str, figure: Figure, step: int) -> None: ...

    @abstractmethod
    def audio(self, tag: str, samples: Tensor, sample_rate: int, step: int) -> None:
        """samples: (T), within [-1, 1]."""

    @abstractmethod
    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
        """Log the options of the run by dotted name, and its final scores, to compare runs."""

    @abstractmethod
    def close(self, complete: bool) -> None:
        """complete: whether the training came to its end, without an error or a stop."""


class TensorBoard(Logger):
    """Event files in RUN/tensorboard.  Drops points from `step` on, because a resumed run logs them again."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        self.writer.add_figure(tag, figure, step)

    def audio(self, tag: str, samples: Tensor, sample_rate: int, step: int) -> None:
        self.writer.add_audio(tag, samples, step, sample_rate)

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {key: x if isinstance(x, (bool, int, float, str)) else str(x) for key, x in options.items()}
        for summary in hparams(plain, dict(scores)):
            self.writer._get_file_writer().add_summary(summary)  # add_hparams would make a second run
        self.scalars(scores, step)

    def close(self, complete: bool) -> None:
        self.writer.close()


class WeightsAndBiases(Logger):
    """A run of Weights & Biases; a resumed training continues it.  WANDB_MODE=offline needs no account."""

    def __init__(self, folder: Path, options: LoggerConfig, config: Mapping[str, Any]) -> None:
        wandb = _import("wandb")
        self.wandb = wandb
        self.run = wandb.init(
            project=options.project,
            name=folder.name,
            dir=str(folder),
            id=_identity(folder),
            resume="allow",
            config=dict(config),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.run.log({tag: self.wandb.Image(np.asarray(canvas.buffer_rgba())), "step": step})

    def audio(self, tag: str, samples: Tensor, sample_rate: int, step: int) -> None:
        self.run.log({tag: self.wandb.Audio(samples.numpy(), sample_rate=sample_rate), "step": step})

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
        self.run.summary.update({f"final/{name}": value for name, value in scores.items()})

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class MLflow(Logger):
    """A run of MLflow at MLFLOW_TRACKING_URI, by default RUN/mlflow.db; a resumed training continues it."""

    def __init__(self, folder: Path, options: LoggerConfig, config: Mapping[str, Any]) -> None:
        tracking = _import("mlflow.tracking", "mlflow")
        own = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = tracking.MlflowClient(own or f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        mark = folder / "mlflow_run.txt"
        if mark.exists():
            self.run = mark.read_text("utf-8").strip()
            self.client.update_run(self.run, "RUNNING")
            return
        experiment = self.client.get_experiment_by_name(options.project)
        artifacts = None if own else (folder / "mlflow").resolve().as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment(options.project, artifacts)
        self.run = self.client.create_run(number, run_name=folder.name).info.run_id
        for name, value in config.items():
            self.client.log_param(self.run, _plain_name(name), str(value)[:6000])
        replace_file(mark, self.run.encode())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, _plain_name(name), value, step=step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        self.client.log_figure(self.run, figure, f"{tag}/{step}.png")

    def audio(self, tag: str, samples: Tensor, sample_rate: int, step: int) -> None:
        """Does nothing: MLflow has no audio."""

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
        for name, value in scores.items():
            self.client.log_metric(self.run, _plain_name(f"final/{name}"), value, step=step)

    def close(self, complete: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if complete else "FAILED")


def open_loggers(folder: Path, options: LoggerConfig, config: Mapping[str, Any], step: int) -> list[Logger]:
    """The loggers chosen in `options`.

    config: the options of the run by dotted name.  step: the first one to log.
    UsageError for a package that is not installed.
    """
    loggers: list[Logger] = []
    if options.tensorboard:
        loggers.append(TensorBoard(folder, step))
    if options.wandb:
        loggers.append(WeightsAndBiases(folder, options, config))
    if options.mlflow:
        loggers.append(MLflow(folder, options, config))
    return loggers


def _import(module: str, package: str = "") -> Any:
    from importlib import import_module

    package = package or module
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"logger.{package}=true needs the package {package}; install it with pip install 'separate[loggers]'"
        ) from None


def _identity(folder: Path) -> str:
    """The identifier of the run in `folder`, a hash of its path."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _plain_name(name: str) -> str:
    """The name with `_` for each character that MLflow refuses."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)
