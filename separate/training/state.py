"""The parts of a training: the state that changes and checkpoints hold, and everything that stays the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import separate
from separate.config import TrainerConfig
from separate.data.example import Examples
from separate.data.loader import FixedBatches, Share, TrainingSteps
from separate.data.mixing.augmenter import Augmenter
from separate.evaluation.metrics import METRICS, Metric
from separate.losses import Loss
from separate.separator import Separator
from separate.training.anomaly import Anomalies
from separate.training.averages import Averages
from separate.training.deferred import Pending
from separate.training.distributed import ALONE, Ranks
from separate.training.finetuning.lora import adapter_weights, load_weights, merged_weights
from separate.training.parameters import without_frozen
from separate.training.precision import PRECISIONS, Precision
from separate.training.profiling import Profile

if TYPE_CHECKING:
    from separate.training.runlog import RunLog


@dataclass
class State:
    """step: steps done; epoch: epochs done, validation included; seconds: time spent training and validating.

    best: the best value of the monitored metric; stale: epochs since it improved;
    sums: metrics added up over the steps of this epoch, by name; skipped: steps in a row that were not applied.
    norms: the gradient norms of all steps in ascending order, for `trainer.clip=auto`.
    averages: of the weights; kept: the value and the epoch of the `trainer.keep_best` best checkpoints, best first.
    pending: the last step, until its metrics are read; None when the state is captured.
    """

    separator: Separator
    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    scaler: torch.amp.GradScaler
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    best: float | None = None
    stale: int = 0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    pending: Pending | None = None
    averages: Averages = field(default_factory=lambda: Averages(torch.nn.Module()))
    kept: list[tuple[float, int]] = field(default_factory=list)

    PLAIN = ("step", "epoch", "seconds", "best", "stale", "skipped", "sums")

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step to the sums of this epoch."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def capture(self) -> dict[str, Any]:
        """The state as tensors and plain values, with the random states that dropout draws from."""
        assert self.pending is None, "call flush first"
        return {
            "model": merged_weights(self.separator),
            "training": {
                "adapters": adapter_weights(self.separator),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                "scaler": self.scaler.state_dict(),
                **random_states(self.separator.device),
                "averages": self.averages.state_dict(),
                "kept": self.kept,
                "norms": torch.tensor(self.norms, dtype=torch.float64),
                **{name: getattr(self, name) for name in self.PLAIN},
            },
        }

    def restore(self, contents: Mapping[str, Any]) -> None:
        """Set the state to the one that `capture` returned."""
        training = contents["training"]
        load_weights(self.separator, contents["model"], training.get("adapters", {}))
        self.optimizer.load_state_dict(self._on_this_device(training["optimizer"]))
        if self.scheduler:
            self.scheduler.load_state_dict(training["scheduler"])
        self.scaler.load_state_dict(training["scaler"])
        for name in self.PLAIN:
            setattr(self, name, training[name])
        self.norms = training["norms"].tolist() if "norms" in training else []  # runs older than AutoClip have none
        if "averages" in training:  # older runs have none
            self.averages.load_state_dict(training["averages"])
        self.kept = [(float(value), int(epoch)) for value, epoch in training.get("kept", [])]
        set_random_states(training, self.separator.device)

    def _on_this_device(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """A state of the optimizer with the kernels, fused or not, of this device."""
        saved = without_frozen(saved, self.separator.network)
        groups = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        adapted = [{**group, "fused": now["fused"]} if "fused" in now else group for group, now in groups]
        return {**saved, "param_groups": adapted}


def random_states(device: torch.device) -> dict[str, torch.Tensor | None]:
    """The states of the generators that dropout draws from, of the CPU and of a CUDA device."""
    return {
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to what `random_states` returned."""
    torch.set_rng_state(states["random"])
    if states["random_cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["random_cuda"], device)


@dataclass(kw_only=True)
class Objective:
    """What a step computes.  precision: of the network's matrix products; options.precision may be auto.

    ranks: the processes of this training.  compute: from `parallelise`, None to compute the loss of this process alone.
    anomalies: hooks for `trainer.anomaly`.
    """

    loss: Loss
    options: TrainerConfig
    precision: Precision = PRECISIONS["fp32"]
    ranks: Ranks = ALONE
    compute: nn.Module | None = None
    anomalies: Anomalies | None = None


@dataclass(kw_only=True)
class Training(Objective):
    """Everything that stays the same while training.  config: the resolved configuration, for the checkpoints.

    watch: called after each epoch with the state and the monitored value; may end the run by an exception.
    lags: the metrics of a step are read during the next one, so that the host does not wait for a GPU.
    """

    train: Examples
    valid: Examples
    batch_size: int
    seed: int
    workers: int | str
    folder: Path
    config: dict[str, Any]
    augment: Augmenter | None = None
    log: RunLog | None = None
    lags: bool = False
    profile: Profile | None = None
    watch: Callable[[State, float], None] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)

    @property
    def steps_per_epoch(self) -> int:
        return self.options.steps_per_epoch or math.ceil(len(self.train) / self.batch_size)

    @property
    def steps(self) -> TrainingSteps:
        """The share of this rank of each training batch."""
        return TrainingSteps(self.train, self.batch_size, self.seed, self.augment, self._share)

    @property
    def valid_batches(self) -> FixedBatches:
        """The share of this rank of each validation batch."""
        return FixedBatches(self.valid, self.batch_size, self._share)

    @property
    def _share(self) -> Share:
        return Share(self.ranks.rank, self.ranks.size, self.loss.neighbours)

    @property
    def examples(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {"train": len(self.train), "valid": len(self.valid)}

    @property
    def monitors(self) -> list[str]:
        """The quantities that `trainer.monitor` can name: of validation, and of the steps of an epoch."""
        parts = getattr(self.loss, "parts", {})
        return [
            *("valid/loss", *(f"valid/{metric}" for metric in self.metrics)),
            *("train/loss", *(f"train/{part}" for part in parts), "train/gradient_norm"),
        ]


def contents_of(state: State, training: Training, scores: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The contents of a checkpoint: the state, and all else that separating or resuming needs."""
    return {
        "config": training.config,
        "scores": dict(scores or {}),
        "examples": training.examples,
        "licence": training.config["data"]["licence"],
        "versions": {"separate": separate.__version__, "torch": str(torch.__version__)},
        **state.capture(),
    }
