"""The checkpoints of a run."""

from __future__ import annotations

import torch

import separate
from separate import checkpoint
from separate.training.state import State, Training
from separate.training.step import flush


def save(state: State, training: Training, name: str, scores: dict[str, float] | None = None) -> None:
    """Write RUN/checkpoints/NAME.ckpt, after reading the metrics of the last step."""
    state.add(flush(state, training))
    contents = {
        "config": training.config,
        "scores": scores or {},
        "examples": training.examples,
        "licence": training.config["data"]["licence"],
        "versions": {"separate": separate.__version__, "torch": str(torch.__version__)},
        **state.capture(),
    }
    checkpoint.save(training.folder / "checkpoints" / f"{name}.ckpt", contents)
