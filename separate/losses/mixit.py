"""Mixture invariant training: to separate without ever having seen a source alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from separate.data.batch import Batch
from separate.losses.base import Loss
from separate.losses.waveform import QUIET, negative_snr, silence_floor, softness
from separate.shapes import Float
from separate.targets import Target

if TYPE_CHECKING:
    from separate.separator import Separation

MOST_ESTIMATES = 12  # 4096 ways to share them out


class MixITLoss(Loss):
    """Two mixtures are added, and all estimates shared out to give both back (Wisdom et al., 2020).

    The network sees each example of a batch added to the next one, and of the 2^M ways to share M estimates out the
    best counts, by the negative SNR in dB with a soft threshold (dB).  Only mixtures are used, no source.
    A silent mixture costs the level above -80 dB of what it is given, which counts as at least 20 dB below the sum.
    """

    without_sources = True
    most_estimates = MOST_ESTIMATES

    def __init__(self, target: Target, threshold: float = 30.0) -> None:
        super().__init__(target)
        self.soft = softness(threshold)

    def prepare(self, batch: Batch) -> Batch:
        """Each mixture plus the next one; a single one plus itself, half of its length later."""
        first = batch.mixture
        second = first.roll(1, dims=0) if len(first) > 1 else first.roll(first.shape[-1] // 2, dims=-1)
        return Batch(first + second, torch.stack([first, second], dim=1), batch.tracks, batch.stft)

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        estimates, mixtures = separation.estimates.flatten(-2), batch.sources.flatten(-2)  # (B, M, T), (B, 2, T)
        with torch.autocast(estimates.device.type, enabled=False):
            floor = silence_floor(mixtures, batch.mixture.flatten(1))  # (B, 2)
            given = best_sharing(estimates.detach(), mixtures, self.soft, floor) @ estimates
            return negative_snr(given, mixtures, self.soft, floor).mean(), {}


@lru_cache
def _sharings(estimates: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2^M, 2, M): every way to give each of M estimates to one of two mixtures; kept on each device."""
    if estimates > MOST_ESTIMATES:
        raise ValueError(f"{estimates} estimates have too many sharings; mixit works with at most {MOST_ESTIMATES}")
    with torch.inference_mode(False):  # also on a first call within inference mode
        first = (torch.arange(2**estimates)[:, None] >> torch.arange(estimates)) & 1
        return torch.stack([first, 1 - first], dim=1).to(device, dtype)


def best_sharing(
    estimates: Float[Tensor, "B M T"], mixtures: Float[Tensor, "B 2 T"], soft: float, floor: Float[Tensor, "B 2"]
) -> Float[Tensor, "B 2 M"]:
    """(B, M, T), (B, 2, T) -> (B, 2, M) of 0 and 1: the sharing that costs least.  soft, floor (B, 2): as in the loss.

    All errors come from one Gram product: |x - a E|^2 = |x|^2 - 2 a E x + a E E' a'.
    """
    sharings = _sharings(estimates.shape[1], estimates.dtype, estimates.device)
    gram = estimates @ estimates.mT  # (B, M, M)
    products = mixtures @ estimates.mT  # (B, 2, M)
    quadratic = torch.einsum("kim,bmn,kin->bki", sharings, gram, sharings)
    linear = torch.einsum("kim,bim->bki", sharings, products)
    energy = mixtures.square().sum(-1)  # (B, 2)
    error = (energy.unsqueeze(1) * (1 + soft) - 2 * linear + quadratic).clamp_min(0) / estimates.shape[-1]
    return sharings[torch.log10(error + floor.unsqueeze(1) + QUIET).sum(-1).argmin(dim=1)]
