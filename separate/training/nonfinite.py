"""Non-finite steps: warn, keep the batch and the state for replay, stop after several in a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separate import checkpoint
from separate.data.batch import Batch
from separate.data.loader import TrainingSteps
from separate.data.mixing.raw_batch import RawBatch
from separate.errors import SeparateError, UsageError
from separate.stft import STFT
from separate.training.deferred import Pending
from separate.training.state import State, Training, contents_of

log = logging.getLogger(__name__)

NOWHERE = "the outputs and gradients of all modules are finite, so the norm of the gradient overflowed"
MOST_DUMPS = 5  # files in RUN/nonfinite; a new one replaces the oldest


class StoredBatch:
    """The batch of a dump, augmented and mixed.  values: its tensors and plain values by name."""

    total: int | None = None  # it is no share of a larger one
    context = 0

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @classmethod
    def of(cls, batch: Batch) -> StoredBatch:
        plain = {name: value for name, value in vars(batch).items() if name != "stft"}
        return cls({name: x.detach().cpu() if isinstance(x, Tensor) else x for name, x in plain.items()})

    def to(self, device: torch.device, stft: STFT) -> Batch:
        """The same batch on `device`, as `RawBatch.to` made it."""
        batch = Batch.__new__(Batch)
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.values.items()}
        vars(batch).update(moved, stft=stft)
        return batch


def report(state: State, training: Training, step: Pending, found: Mapping[str, float]) -> None:
    """Write the dump of a step and warn; SeparateError after `trainer.max_bad_steps` such steps in a row.

    found: the metrics of the step.
    """
    batch = _whole(training, step).to(state.separator.device, state.separator.stft)
    path = training.folder / "nonfinite" / f"step_{step.number}.pt"
    if training.ranks.first:
        dump = contents_of(state, training)
        dump["training"] = {**dump["training"], **step.random, "step": step.number}
        checkpoint.save(path, {**dump, "batch": StoredBatch.of(batch).values, "metrics": dict(found)})
        _remove_old(path.parent)
    what = (
        f"step {step.number} was not applied: loss {found['loss']:g}, gradient norm {found['gradient_norm']:g}, "
        f"tracks {', '.join(batch.tracks)}; separate-train debug=replay dump={path} runs it again"
    )
    log.warning(what)
    if training.anomalies:
        raise SeparateError(
            f"step {step.number}: {_located(training)}; separate-train debug=replay dump={path} runs it again"
        )
    if state.skipped >= training.options.max_bad_steps:
        raise SeparateError(
            f"{state.skipped} steps in a row were not finite (trainer.max_bad_steps) and the run stops; the last: "
            f"{what}. Lower optimizer.lr or trainer.clip, or look at these tracks; the checkpoints are from before "
            f"these steps"
        )


def _located(training: Training) -> str:
    """What the hooks of `trainer.anomaly` found, on any rank."""
    assert training.anomalies
    found = [one for one in training.ranks.gather(training.anomalies.first) if one]
    return str(found[0]) if found else NOWHERE


def _whole(training: Training, step: Pending) -> RawBatch:
    """The batch of a step; that of all ranks is loaded again, because each has only its share."""
    if training.ranks.alone:
        return step.drawn
    batch = TrainingSteps(training.train, training.batch_size, training.seed, training.augment)[step.number]
    if isinstance(batch, SeparateError):
        raise batch
    return batch


def _remove_old(folder: Path) -> None:
    dumps = sorted(folder.glob("step_*.pt"), key=lambda path: path.stat().st_mtime)
    for path in dumps[:-MOST_DUMPS]:
        path.unlink(missing_ok=True)


def read_dump(path: Path) -> dict[str, Any]:
    """The contents of a dump; UsageError for any other file."""
    if not path.name:
        raise UsageError("there is no step to run again; add dump=RUN/nonfinite/step_N.pt")
    contents = checkpoint.read(path)
    if not isinstance(contents.get("batch"), dict) or not isinstance(contents.get("training"), dict):
        raise UsageError(f"{path} is a checkpoint and not the dump of a step; name a file of RUN/nonfinite")
    return contents
