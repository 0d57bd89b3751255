"""Validation: loss and scores of each set of weights, over the validation excerpts or whole recordings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from separate.config import EvalConfig
from separate.data.batch import Batch
from separate.data.loader import FixedBatches, load
from separate.errors import UsageError
from separate.evaluation.recordings import read_recording, separate_recording
from separate.evaluation.scores import score
from separate.process import release
from separate.training.interruption import Interruption
from separate.training.selection import metric_of
from separate.training.state import State, Training


@dataclass
class Tally:
    """The losses of batches times their sizes, and the scores (B, S) by metric, of one set of weights."""

    losses: list[Tensor] = field(default_factory=list)
    scores: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Tensor]) -> None:
        for name, values in found.items():
            self.scores.setdefault(name, []).append(values)

    def means(self, examples: int) -> dict[str, float]:
        scores = {f"valid/{name}": torch.cat(values).nanmean().item() for name, values in self.scores.items()}
        return {"valid/loss": torch.stack(self.losses).sum().item() / examples, **scores}


def check_monitor(training: Training) -> None:
    """UsageError if `trainer.monitor` names no metric of the validation."""
    monitor = training.options.monitor
    if monitor not in training.monitors:
        raise UsageError(f"trainer.monitor={monitor} is unknown; choose from {', '.join(training.monitors)}")


@torch.inference_mode()
def validate(state: State, training: Training, interruption: Interruption) -> dict[str, float]:
    """Mean loss and scores by name, in float32 and on the same path as evaluation and inference.

    `valid/loss` is that of the raw weights, `valid_ema0.999/loss` that of an average.  Each batch is loaded once and
    separated with all sets of weights.  With `trainer.valid_full` the scores are those of whole recordings, as
    `separate-eval` computes them, and the loss still is that of the excerpts: it needs the outputs of the network,
    which chunks do not share.
    """
    begun = time.perf_counter()
    state.separator.eval()
    tallies = {name: Tally() for name in state.averages.sets}
    examples = _excerpts(state, training, interruption, tallies)
    if training.options.valid_full:
        _recordings(state, training, interruption, tallies)
    state.seconds += time.perf_counter() - begun
    return {
        metric_of(weights, name): value
        for weights, tally in tallies.items()
        for name, value in tally.means(examples).items()
    }


def _excerpts(state: State, training: Training, interruption: Interruption, tallies: Mapping[str, Tally]) -> int:
    """Add the losses and, unless recordings are scored, the scores of the excerpts; return the number of them."""
    device, examples = state.separator.device, 0
    batches = FixedBatches(training.valid, training.batch_size)
    steps = min(len(batches), training.options.valid_steps or len(batches))
    with closing(load(batches, range(steps), training.workers, device.type == "cuda")) as stream:
        for drawn in tqdm(stream, "validating", steps, leave=False, disable=None):
            batch = drawn.to(device, state.separator.stft)
            for weights, tally in tallies.items():
                with state.averages.swapped(weights):
                    add_excerpts(state, training, batch, tally)
            examples += len(batch.mixture)
            interruption.check()
    return examples


def add_excerpts(state: State, training: Training, batch: Batch, tally: Tally) -> None:
    separator, loss = state.separator, training.loss
    prepared = loss.prepare(batch)
    separation = separator.separate(prepared)
    tally.losses.append(loss(separation, prepared)[0].double() * len(batch.mixture))
    if training.options.valid_full:
        return
    if prepared is not batch:
        separation = separator.separate(batch)
    tally.add(score(separation.estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics))


def _recordings(state: State, training: Training, interruption: Interruption, tallies: Mapping[str, Tally]) -> None:
    """Add the scores of the whole recordings, separated in the chunks that separate-eval uses by default."""
    separator, valid = state.separator, training.valid
    for index in tqdm(range(valid.recordings), "validating recordings", leave=False, disable=None):
        batch = read_recording(valid, index, separator)
        for weights, tally in tallies.items():
            with state.averages.swapped(weights):
                estimates = separate_recording(separator, batch, EvalConfig.chunk, EvalConfig.overlap)
            tally.add(score(estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics))
        release()
        interruption.check()
