"""The checkpoints of a run."""

from __future__ import annotations

from separate import checkpoint
from separate.training.averages import RAW
from separate.training.finetuning.lora import merged_weights
from separate.training.selection import epoch_name, remove_others
from separate.training.state import State, Training, contents_of, random_states
from separate.training.step import flush


def save(
    state: State, training: Training, name: str, scores: dict[str, float] | None = None, weights: str = RAW
) -> None:
    """Write RUN/checkpoints/NAME.ckpt, after reading the metrics of the last step.

    weights: the set of weights that it holds under `model`; the name is stored under `weights`.
    """
    state.add(flush(state, training))
    others = training.ranks.gather(random_states(state.separator.device))[1:]
    if not training.ranks.first:
        return
    contents = {**contents_of(state, training, scores), "weights": weights}
    contents["training"]["others"] = others  # the random states of the other ranks
    if weights != RAW:
        with state.averages.swapped(weights):
            contents["model"] = {key: value.clone() for key, value in merged_weights(state.separator).items()}
    checkpoint.save(training.folder / "checkpoints" / f"{name}.ckpt", contents)


def save_epoch(state: State, training: Training, scores: dict[str, float], weights: str, improved: bool) -> None:
    """Write the checkpoints of an epoch that has ended.  weights: the set that won it; improved: it is the best so far.

    Files are removed after last.ckpt has listed the others, so that a run killed at any moment finds those it lists.
    """
    if any(epoch == state.epoch for _, epoch in state.kept):
        save(state, training, epoch_name(state.epoch), scores, weights)
    if improved:
        save(state, training, "best", scores, weights)
    save(state, training, "last", scores)
    if training.ranks.first:
        remove_others(training.folder / "checkpoints", state.kept)
