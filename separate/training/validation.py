"""Validation: loss and scores over the validation examples."""

from __future__ import annotations

import time
from contextlib import closing

import torch
from torch import Tensor
from tqdm import tqdm

from separate.data.loader import FixedBatches, load
from separate.evaluation.scores import score
from separate.training.interruption import Interruption
from separate.training.state import State, Training


@torch.inference_mode()
def validate(state: State, training: Training, interruption: Interruption) -> dict[str, float]:
    """Mean loss and scores by name, in float32 and on the same path as evaluation and inference."""
    separator, loss = state.separator.eval(), training.loss
    losses: list[Tensor] = []
    examples = 0
    scores: dict[str, list[Tensor]] = {name: [] for name in training.metrics}
    batches = FixedBatches(training.valid, training.batch_size)
    begun = time.perf_counter()
    steps = min(len(batches), training.options.valid_steps or len(batches))
    with closing(load(batches, range(steps), training.workers, separator.device.type == "cuda")) as stream:
        for drawn in tqdm(stream, "validating", steps, leave=False, disable=None):
            batch = drawn.to(separator.device, separator.stft)
            prepared = loss.prepare(batch)
            separation = separator.separate(prepared)
            losses.append(loss(separation, prepared)[0].double() * len(batch.mixture))
            if prepared is not batch:
                separation = separator.separate(batch)
            examples += len(batch.mixture)
            found = score(
                separation.estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics
            )
            for name, values in found.items():
                scores[name].append(values)
            interruption.check()
    state.seconds += time.perf_counter() - begun
    means = {f"valid/{name}": torch.cat(values).nanmean().item() for name, values in scores.items()}
    return {"valid/loss": torch.stack(losses).sum().item() / examples, **means}
