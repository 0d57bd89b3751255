"""The checkpoints of a run."""

from __future__ import annotations

from separate import checkpoint
from separate.training.state import State, Training, contents_of
from separate.training.step import flush


def save(state: State, training: Training, name: str, scores: dict[str, float] | None = None) -> None:
    """Write RUN/checkpoints/NAME.ckpt, after reading the metrics of the last step."""
    state.add(flush(state, training))
    checkpoint.save(training.folder / "checkpoints" / f"{name}.ckpt", contents_of(state, training, scores))
