"""Scores of a batch, for validation and for `separate-eval`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from separate.evaluation.metrics import METRICS, Metric
from separate.evaluation.sdr import pairwise_si_sdr, sums
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
    _, unscored = _without_scores(sources, mixture)
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
    """The scores of recordings, and the levels of estimates whose reference is silent, all in float64.

    estimates: (B, M, C, T); sources: (B, S, C, T); mixture: (B, C, T).
    interchangeable: every metric pairs estimates and sources for its own best mean, and a family of metrics for that of
    its first one.  NaN as for `score`, and where a metric is undefined.
    """
    silent, unscored = _without_scores(sources, mixture)
    compute = _paired if interchangeable else _of
    values: dict[str, Tensor] = {}
    frames: dict[str, Tensor] = {}
    for group in _groups(metrics):
        heard, true, whole = (x if group[0].in_blocks else x.double() for x in (estimates, sources, mixture))
        found = compute(group[0], heard, true, whole, sample_rate)
        for metric in group:
            scores = found[metric.name]
            if metric.aggregate:
                frames[metric.name] = scores
                scores = _median(scores)
            values[metric.name] = scores.masked_fill(
                unscored & ~silent if metric.scores_silence else unscored, torch.nan
            )
    if interchangeable:
        estimates = arrange(estimates, sources)
    levels = sums(estimates.flatten(-2), mixture.flatten(-2).unsqueeze(1))
    level = 10 * torch.log10(levels.estimate / levels.reference)
    return Scores(values, level.masked_fill(~silent, torch.nan), frames)


def _median(frames: Tensor) -> Tensor:
    """The median over the frames that are not NaN, (B, S, W) -> (B, S); NaN without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a source without any
        return torch.from_numpy(np.asarray(np.nanmedian(frames.cpu().numpy(), axis=-1)))


def _without_scores(sources: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a source is silent, and whether it is silent or the whole mixture, (B, S) each."""
    found = sums(mixture.flatten(-2).unsqueeze(1), sources.flatten(-2))
    silent = found.reference == 0
    return silent, silent | (found.difference < 1e-10 * found.reference)  # -100 dB is rounding error of the mixture


def _groups(metrics: Mapping[str, Metric]) -> list[list[Metric]]:
    """The metrics that are computed together."""
    groups: dict[str, list[Metric]] = {}
    for name, metric in metrics.items():
        groups.setdefault(metric.family.name if metric.family else f".{name}", []).append(metric)
    return list(groups.values())


def _of(metric: Metric, estimates: Tensor, sources: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """The scores of a metric or of its family, (B, S) or (B, S, W) each."""
    if metric.family is None:
        return {metric.name: metric(estimates, sources, mixture)}
    return metric.family.function(estimates, sources, mixture, rate)


def _paired(metric: Metric, estimates: Tensor, sources: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """`_of` with the estimates in the best order for the metric, or for the first one of its family."""
    count = sources.shape[1]
    pairs = [
        _of(metric, estimates[:, m : m + 1].expand(-1, count, -1, -1), sources, mixture, rate)
        for m in range(estimates.shape[1])
    ]
    pairwise = {
        name: torch.stack([one[name] for one in pairs], dim=1) for name in pairs[0]
    }  # (B, M, S) or (B, M, S, W)
    judge = pairwise[metric.family.ordered_by if metric.family else metric.name]
    judge = (judge.nanmean(-1) if judge.ndim == 4 else judge).nan_to_num(0.0, 1e6, -1e6)
    order = best_permutation(-judge if metric.higher_is_better else judge)  # (B, S)
    return {
        name: torch.stack([x[b, order[b], torch.arange(count)] for b in range(len(order))])
        for name, x in pairwise.items()
    }
