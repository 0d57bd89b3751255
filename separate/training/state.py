"""Everything that changes while training, and so exactly what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from separate.separator import Separator
from separate.training.deferred import Pending


@dataclass
class State:
    """step: steps done; epoch: epochs done, validation included; seconds: time spent training and validating.

    best: the best value of the monitored metric; stale: epochs since it improved;
    sums: what this epoch's steps have added up so far, by name; skipped: steps not applied, in a row.
    pending: the last step, until its figures are read; None when the state is captured.
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
    pending: Pending | None = None

    PLAIN = ("step", "epoch", "seconds", "best", "stale", "skipped", "sums")

    def capture(self) -> dict[str, Any]:
        """Tensors and plain values, with the random states that dropout draws from."""
        assert self.pending is None, "flush comes first"
        device = self.separator.device
        return {
            "model": self.separator.state_dict(),
            "training": {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                "scaler": self.scaler.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                **{name: getattr(self, name) for name in self.PLAIN},
            },
        }

    def restore(self, contents: Mapping[str, Any]) -> None:
        """Go back to what `capture` gave."""
        self.separator.load_state_dict(contents["model"])
        training = contents["training"]
        self.optimizer.load_state_dict(self._on_this_device(training["optimizer"]))
        if self.scheduler:
            self.scheduler.load_state_dict(training["scheduler"])
        self.scaler.load_state_dict(training["scaler"])
        for name in self.PLAIN:
            setattr(self, name, training[name])
        torch.set_rng_state(training["random"])
        if training["random_cuda"] is not None and self.separator.device.type == "cuda":
            torch.cuda.set_rng_state(training["random_cuda"], self.separator.device)

    def _on_this_device(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """A state of the optimizer, fused or not as this device has it: the run may have begun on another one."""
        groups = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        adapted = [{**group, "fused": now["fused"]} if "fused" in now else group for group, now in groups]
        return {**saved, "param_groups": adapted}
