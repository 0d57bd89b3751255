"""The checkpoints of a run."""

from __future__ import annotations

from separate import checkpoint
from separate.training.state import State, Training, contents_of, random_states
from separate.training.step import flush


def save(state: State, training: Training, name: str, scores: dict[str, float] | None = None) -> None:
    """Write RUN/checkpoints/NAME.ckpt, after reading the metrics of the last step."""
    state.add(flush(state, training))
    others = training.ranks.gather(random_states(state.separator.device))[1:]
    if training.ranks.first:
        contents = contents_of(state, training, scores)
        contents["training"]["others"] = others  # the random states of the other ranks
        checkpoint.save(training.folder / "checkpoints" / f"{name}.ckpt", contents)
