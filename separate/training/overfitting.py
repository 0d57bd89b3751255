"""Overfit one batch: a network, a loss and a target that fit each other learn it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from tqdm import tqdm

from separate.data.mixing.raw_batch import RawBatch
from separate.errors import SeparateError
from separate.training.finetuning.preparation import train_mode
from separate.training.selection import RAW
from separate.training.state import State, Training
from separate.training.step import flush, train_step
from separate.training.validation import Tally, add_batch

log = logging.getLogger(__name__)

LEARNED = 3.0  # dB that SI-SDR must gain


def overfit(state: State, training: Training) -> float:
    """Train `trainer.overfit` steps on the first batch without augmentation.  Returns its loss (evaluation mode).

    Writes nothing but the log.
    """
    options = replace(training.options, valid_full=False)  # which has no scores of excerpts
    training = replace(training, augment=None, options=options)
    batch = training.steps[0]
    if isinstance(batch, SeparateError):
        raise batch
    before = scores(state, training, batch)
    train_mode(state.separator)
    for _ in tqdm(range(training.options.overfit or 0), "overfitting", leave=False, disable=training.ranks.hides_bar):
        state.add(train_step(state, training, batch))
    state.add(flush(state, training))
    after = scores(state, training, batch)
    log.info(
        "batch of %d after %d steps: loss %.4g, at the start %.4g; SI-SDR %.2f dB, at the start %.2f dB, "
        "of the mixture %.2f dB\n%s",
        training.batch_size,
        state.step,
        after["loss"],
        before["loss"],
        after["si_sdr"],
        before["si_sdr"],
        after["si_sdr"] - after["si_sdri"],
        verdict(before, after),
    )
    return after["loss"]


def verdict(before: dict[str, float], after: dict[str, float]) -> str:
    """Whether the network has learned the batch.  before, after: loss and si_sdr (NaN without references)."""
    if not after["loss"] < before["loss"]:
        return (
            "NOT learned: the loss did not fall; look at optimizer.lr, trainer.clip, frozen parameters and gradients "
            "(debug=anomaly)"
        )
    gained = after["si_sdr"] - before["si_sdr"]
    if math.isnan(gained):
        return "the loss fell; without references, nothing is known of the estimates"
    if gained < LEARNED:
        return (
            f"NOT learned: the loss fell and SI-SDR changed by {gained:.2f} dB only; the loss does not fit its target, "
            f"or takes more steps (trainer.overfit, optimizer.lr)"
        )
    return f"learned: the loss fell and SI-SDR rose by {gained:.2f} dB"


@torch.inference_mode()
def scores(state: State, training: Training, batch: RawBatch) -> dict[str, float]:
    """Loss and metrics of a batch by name, as in validation."""
    state.separator.eval()
    tally = Tally({metric: [] for metric in training.metrics})
    add_batch(state, training, batch, {RAW: tally})
    return {name.removeprefix("valid/"): value for name, value in tally.means(training.ranks).items()}
