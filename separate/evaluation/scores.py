"""The scores of a separation: one definition for validation and for `separate-eval`."""

from __future__ import annotations

import torch
from torch import Tensor

from separate.evaluation.sdr import si_sdr, snr
from separate.losses.permutation import best_permutation, select

METRICS = ("si_sdr", "si_sdri", "snr")


def arrange(estimates: Tensor, sources: Tensor) -> Tensor:
    """estimates (B, S, C, T) in the order that gives the best mean SI-SDR against the sources, for each example."""
    pairwise = si_sdr(estimates.flatten(-2).unsqueeze(2), sources.flatten(-2).unsqueeze(1))
    return select(estimates, best_permutation(-pairwise))


def score(estimates: Tensor, sources: Tensor, mixture: Tensor, interchangeable: bool) -> dict[str, Tensor]:
    """SI-SDR, its improvement over the mixture, and SNR in dB, each (B, S) float64, computed in float64.

    estimates, sources: (B, S, C, T); mixture: (B, C, T).  The channels of a source are scored as one signal, so that
    a wrong balance costs.  Interchangeable sources are paired for the best mean SI-SDR.
    A silent source has no such scores: NaN.
    """
    if interchangeable:
        estimates = arrange(estimates, sources)
    estimates, sources, mixture = (x.double().flatten(-2) for x in (estimates, sources, mixture))  # (..., C T)
    silent = sources.abs().amax(-1) == 0
    found = si_sdr(estimates, sources)
    scores = {
        "si_sdr": found,
        "si_sdri": found - si_sdr(mixture.unsqueeze(1), sources),
        "snr": snr(estimates, sources),
    }
    return {name: values.masked_fill(silent, torch.nan) for name, values in scores.items()}
