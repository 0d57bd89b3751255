"""The scores of a separation: one definition for validation and for `separate-eval`."""

from __future__ import annotations

import torch
from torch import Tensor

from separate.evaluation.sdr import pairwise_si_sdr, si_sdr, snr
from separate.losses.permutation import best_permutation, select
from separate.separator import Separation

METRICS = ("si_sdr", "si_sdri", "snr")


def arrange(estimates: Tensor, sources: Tensor) -> Tensor:
    """Of estimates (B, M, C, T) those that best fit the sources (B, S, C, T), in their order -> (B, S, C, T)."""
    return select(estimates, order_of(estimates, sources))


def order_of(estimates: Tensor, sources: Tensor) -> Tensor:
    """(B, S), the estimate that belongs to each source: the choice with the best mean SI-SDR of each example."""
    return best_permutation(-pairwise_si_sdr(estimates.flatten(-2).float(), sources.flatten(-2).float()))


def arrange_separation(separation: Separation) -> Separation:
    """The same with estimates and masks in the order of the sources of its batch."""
    order = order_of(separation.estimates, separation.batch.sources)
    heads = {"waveforms": select(separation.estimates, order)}
    if (masks := separation.applied_masks) is not None:
        heads["masks"] = select(masks, order)
    return Separation(separation.batch, heads)


def score(estimates: Tensor, sources: Tensor, mixture: Tensor, interchangeable: bool) -> dict[str, Tensor]:
    """SI-SDR, its improvement over the mixture, and SNR in dB, each (B, S) float64, computed in float64.

    estimates: (B, M, C, T); sources: (B, S, C, T); mixture: (B, C, T).  Interchangeable sources are paired for the best
    mean SI-SDR, and estimates beyond their number left out.  The channels of a source are scored as one signal, so
    that a wrong balance costs.
    A silent source has no such scores, nor has one that is all there is in its mixture: NaN.  An estimate that is
    not finite scores -inf, so that no mean can hide it.
    """
    if interchangeable:
        estimates = arrange(estimates, sources)
    estimates, sources, mixture = (x.double().flatten(-2) for x in (estimates, sources, mixture))  # (..., C T)
    others = (mixture.unsqueeze(1) - sources).square().sum(-1)
    energy = sources.square().sum(-1)
    unscored = (energy == 0) | (others < 1e-10 * energy)  # 100 dB below: rounding of the mixture
    found = si_sdr(estimates, sources)
    scores = {
        "si_sdr": found,
        "si_sdri": found - si_sdr(mixture.unsqueeze(1), sources),
        "snr": snr(estimates, sources),
    }
    return {
        name: values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(unscored, torch.nan)
        for name, values in scores.items()
    }
