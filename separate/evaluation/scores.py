"""Scores of a batch, for validation and for `separate-eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from separate.evaluation.metrics import METRICS, Metric
from separate.evaluation.sdr import pairwise_si_sdr
from separate.losses.permutation import best_permutation, select
from separate.separator import Separation


def arrange(estimates: Tensor, sources: Tensor) -> Tensor:
    """Estimates (B, M, C, T) in the order of the sources (B, S, C, T), without unmatched ones -> (B, S, C, T)."""
    return select(estimates, order_of(estimates, sources))


def order_of(estimates: Tensor, sources: Tensor) -> Tensor:
    """Index of the estimate of each source, (B, S), for the best mean SI-SDR of each example."""
    return best_permutation(-pairwise_si_sdr(estimates.flatten(-2).float(), sources.flatten(-2).float()))


def arrange_separation(separation: Separation) -> Separation:
    """The separation with its estimates and masks in the order of the sources of the batch."""
    order = order_of(separation.estimates, separation.batch.sources)
    heads = {"waveforms": select(separation.estimates, order)}
    if (masks := separation.applied_masks) is not None:
        heads["masks"] = select(masks, order)
    return Separation(separation.batch, heads)


def score(
    estimates: Tensor,
    sources: Tensor,
    mixture: Tensor,
    interchangeable: bool,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Tensor]:
    """{name of a metric: scores (B, S)}, computed in float64.

    estimates: (B, M, C, T); sources: (B, S, C, T); mixture: (B, C, T).  interchangeable: permute the estimates for the
    best mean SI-SDR, and leave out unmatched ones.
    NaN for a silent source and for a source that is the whole mixture.  An estimate with NaN gets the worst score,
    e.g. -inf dB, so that a mean over tracks shows it.
    """
    if interchangeable:
        estimates = arrange(estimates, sources)
    estimates, sources, mixture = (x.double() for x in (estimates, sources, mixture))
    rest = (mixture.unsqueeze(1) - sources).square().sum((-2, -1))
    energy = sources.square().sum((-2, -1))
    unscored = (energy == 0) | (rest < 1e-10 * energy)  # a rest of -100 dB is rounding error of the mixture
    return {
        name: metric(estimates, sources, mixture).masked_fill(unscored, torch.nan) for name, metric in metrics.items()
    }


@dataclass
class Scores:
    """values: {metric: (B, S)}; frames: {metric: (B, S, W)}; leaked: (B, S), dB re the mixture, NaN unless silent."""

    values: dict[str, Tensor]
    leaked: Tensor
    frames: dict[str, Tensor] = field(default_factory=dict)


def score_recording(
    estimates: Tensor,
    sources: Tensor,
    mixture: Tensor,
    sample_rate: int,
    metrics: Mapping[str, Metric],
    interchangeable: bool,
) -> Scores:
    """The scores of a recording and the levels of estimates whose reference is silent."""
    if interchangeable:
        estimates = arrange(estimates, sources)
    power = mixture.double().square().sum((-2, -1)).unsqueeze(1)
    level = 10 * torch.log10(estimates.double().square().sum((-2, -1)) / power)
    silent = sources.square().sum((-2, -1)) == 0
    return Scores(score(estimates, sources, mixture, False, metrics), level.masked_fill(~silent, torch.nan))
