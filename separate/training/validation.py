"""Validation: loss and scores over the validation examples."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from separate.data.loader import load
from separate.data.mixing.raw_batch import RawBatch
from separate.evaluation.scores import score
from separate.training.data_parallel import prepared
from separate.training.interruption import Interruption
from separate.training.state import State, Training


@dataclass
class Sums:
    """losses: of each batch, times its examples; scores: by name, NaN where there is none."""

    losses: list[Tensor] = field(default_factory=list)
    examples: int = 0
    scores: dict[str, list[Tensor]] = field(default_factory=dict)


@torch.inference_mode()
def validate(state: State, training: Training, interruption: Interruption) -> dict[str, float]:
    """Mean loss and scores by name, in float32 and on the same path as evaluation and inference."""
    separator, ranks = state.separator.eval(), training.ranks
    sums = Sums(scores={name: [] for name in training.metrics})
    batches = training.valid_batches
    begun = time.perf_counter()
    steps = min(len(batches), training.options.valid_steps or len(batches))
    with closing(load(batches, range(steps), training.workers, separator.device.type == "cuda")) as stream:
        for drawn in tqdm(stream, "validating", steps, leave=False, disable=ranks.hides_bar):
            if drawn is not None:
                _add(sums, drawn, state, training)
            interruption.check()
    elapsed = time.perf_counter() - begun if ranks.first else 0.0
    numbers = [elapsed, torch.stack(sums.losses).sum().item() if sums.losses else 0.0, sums.examples]
    for values in sums.scores.values():
        found = torch.cat(values) if values else torch.empty(0)  # a rank without examples
        numbers += [found.nansum().item(), (~found.isnan()).sum().item()]
    seconds, loss, examples, *rest = ranks.totals(*numbers)
    state.seconds += seconds
    means = zip(sums.scores, rest[::2], rest[1::2], strict=True)
    return {
        "valid/loss": loss / examples,
        **{f"valid/{name}": total / count if count else math.nan for name, total, count in means},
    }


def _add(sums: Sums, drawn: RawBatch, state: State, training: Training) -> None:
    """Add the loss and the scores of a batch."""
    separator = state.separator
    whole = drawn.to(separator.device, separator.stft)
    batch = whole.part(drawn.context, len(whole)) if drawn.context else whole
    ready = prepared(training.loss, whole, drawn.context)
    separation = separator.separate(ready)
    sums.losses.append(training.loss(separation, ready)[0].double() * len(batch.mixture))
    sums.examples += len(batch.mixture)
    if ready is not batch:
        separation = separator.separate(batch)
    found = score(separation.estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics)
    for name, values in found.items():
        sums.scores[name].append(values)
