"""Validation: loss and scores of each set of weights, over the validation excerpts or whole recordings."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from separate.config import EvalConfig
from separate.data.loader import load
from separate.data.mixing.raw_batch import RawBatch
from separate.errors import UsageError
from separate.evaluation.recordings import read_recording, separate_recording
from separate.evaluation.scores import score
from separate.process import release
from separate.training.data_parallel import prepared
from separate.training.distributed import Ranks
from separate.training.interruption import Interruption
from separate.training.selection import metric_of
from separate.training.state import State, Training


@dataclass
class Tally:
    """The sums for one set of weights.  losses: of each batch, times its examples; examples: their number.

    scores: {metric: (B, S) of each batch}, NaN for an undefined score.
    """

    scores: dict[str, list[Tensor]]
    losses: list[Tensor] = field(default_factory=list)
    examples: int = 0

    def add(self, found: Mapping[str, Tensor]) -> None:
        for name, values in found.items():
            self.scores[name].append(values)

    def means(self, ranks: Ranks) -> dict[str, float]:
        """The mean loss and scores over the examples of all ranks."""
        numbers = [torch.stack(self.losses).sum().item() if self.losses else 0.0, self.examples]
        for values in self.scores.values():
            found = torch.cat(values) if values else torch.empty(0)  # a rank without examples
            numbers += [found.nansum().item(), (~found.isnan()).sum().item()]
        loss, examples, *rest = ranks.totals(*numbers)
        means = zip(self.scores, rest[::2], rest[1::2], strict=True)
        return {
            "valid/loss": loss / examples,
            **{f"valid/{name}": total / count if count else math.nan for name, total, count in means},
        }


def check_monitor(training: Training) -> None:
    """UsageError if `trainer.monitor` names no metric of the validation."""
    monitor = training.options.monitor
    if monitor not in training.monitors:
        raise UsageError(f"trainer.monitor={monitor} is unknown; choose from {', '.join(training.monitors)}")


@torch.inference_mode()
def validate(state: State, training: Training, interruption: Interruption) -> dict[str, float]:
    """Mean loss and scores by name, in float32 and on the same path as evaluation and inference.

    `valid/loss` belongs to the raw weights, `valid_ema0.999/loss` to an average.  Each batch is loaded once for all
    sets of weights.  With `trainer.valid_full` the scores are of whole recordings, as in `separate-eval`; the loss
    stays on the excerpts, because it needs the outputs of the network, and these exist per chunk only.
    """
    begun, ranks = time.perf_counter(), training.ranks
    state.separator.eval()
    tallies = {name: Tally({metric: [] for metric in training.metrics}) for name in state.averages.sets}
    _excerpts(state, training, interruption, tallies)
    if training.options.valid_full:
        _recordings(state, training, interruption, tallies)
    state.seconds += ranks.totals(time.perf_counter() - begun if ranks.first else 0.0)[0]
    return {
        metric_of(weights, name): value
        for weights, tally in tallies.items()
        for name, value in tally.means(ranks).items()
    }


def _excerpts(state: State, training: Training, interruption: Interruption, tallies: Mapping[str, Tally]) -> None:
    """Add the losses and, unless recordings are scored, the scores of the excerpts."""
    pin, hides_bar = state.separator.device.type == "cuda", training.ranks.hides_bar
    batches = training.valid_batches
    steps = min(len(batches), training.options.valid_steps or len(batches))
    with closing(load(batches, range(steps), training.workers, pin)) as stream:
        for drawn in tqdm(stream, "validating", steps, leave=False, disable=hides_bar):
            if drawn is not None:
                add_batch(state, training, drawn, tallies)
            interruption.check()


def add_batch(state: State, training: Training, drawn: RawBatch, tallies: Mapping[str, Tally]) -> None:
    """Add the loss and, unless recordings are scored, the scores of a batch of excerpts."""
    separator = state.separator
    whole = drawn.to(separator.device, separator.stft)
    batch = whole.part(drawn.context, len(whole)) if drawn.context else whole
    ready = prepared(training.loss, whole, drawn.context)
    for weights, tally in tallies.items():
        with state.averages.swapped(weights):
            separation = separator.separate(ready)
            tally.losses.append(training.loss(separation, ready)[0].double() * len(batch.mixture))
            tally.examples += len(batch.mixture)
            if training.options.valid_full:
                continue
            if ready is not batch:
                separation = separator.separate(batch)
            estimates, metrics = separation.estimates, training.metrics
            tally.add(score(estimates, batch.sources, batch.mixture, separator.interchangeable, metrics))


def _recordings(state: State, training: Training, interruption: Interruption, tallies: Mapping[str, Tally]) -> None:
    """Add the scores of the whole recordings, separated in the chunks that separate-eval uses by default."""
    separator, valid, ranks = state.separator, training.valid, training.ranks
    rounds = range(ranks.rank, math.ceil(valid.recordings / ranks.size) * ranks.size, ranks.size)
    for index in tqdm(rounds, "validating recordings", leave=False, disable=ranks.hides_bar):
        if index < valid.recordings:  # in the last round some ranks have none
            batch = read_recording(valid, index, separator)
            for weights, tally in tallies.items():
                with state.averages.swapped(weights):
                    estimates = separate_recording(separator, batch, EvalConfig.chunk, EvalConfig.overlap)
                tally.add(score(estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics))
            release()
        interruption.check()
