"""Mixture invariant training (MixIT): learn separation from mixtures, without isolated sources."""

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

MOST_ESTIMATES = 12  # 4096 assignments to two mixtures


class MixITLoss(Loss):
    """MixIT: negative SNR in dB of two mixtures, each estimated by a sum of separated signals (Wisdom et al., 2020).

    The network separates the sum of each mixture and the one before it in the batch.  Each of the M estimates is
    assigned to one of the two mixtures; of the 2^M assignments, the one with the smallest loss counts.
    threshold: SNR in dB at which the loss saturates.
    The loss of a silent mixture is the level of its estimate above -80 dB re full scale, and at least that of an
    estimate 20 dB below the sum.
    """

    without_sources = True
    neighbours = True
    most_estimates = MOST_ESTIMATES

    def __init__(self, target: Target, threshold: float = 30.0) -> None:
        super().__init__(target)
        self.soft = softness(threshold)

    def prepare(self, batch: Batch) -> Batch:
        """Add to each mixture the one before it in the batch; to a single one itself, rotated by half its length."""
        first = batch.mixture
        second = first.roll(1, dims=0) if len(first) > 1 else first.roll(first.shape[-1] // 2, dims=-1)
        return Batch(first + second, torch.stack([first, second], dim=1), batch.tracks, batch.stft)

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        estimates, mixtures = separation.estimates.flatten(-2), batch.sources.flatten(-2)  # (B, M, T), (B, 2, T)
        with torch.autocast(estimates.device.type, enabled=False):
            floor = silence_floor(mixtures, batch.mixture.flatten(1))  # (B, 2)
            summed = best_assignment(estimates.detach(), mixtures, self.soft, floor) @ estimates
            return negative_snr(summed, mixtures, self.soft, floor).mean(), {}


@lru_cache
def _assignments(estimates: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2^M, 2, M): all assignments of M estimates to two mixtures, cached on each device."""
    if estimates > MOST_ESTIMATES:
        raise ValueError(f"{estimates} estimates are too many for mixit; use at most {MOST_ESTIMATES}")
    with torch.inference_mode(False):  # also on a first call within inference mode
        first = (torch.arange(2**estimates)[:, None] >> torch.arange(estimates)) & 1
        return torch.stack([first, 1 - first], dim=1).to(device, dtype)


def best_assignment(
    estimates: Float[Tensor, "B M T"], mixtures: Float[Tensor, "B 2 T"], soft: float, floor: Float[Tensor, "B 2"]
) -> Float[Tensor, "B 2 M"]:
    """The assignment with the smallest loss, 0 or 1 for each mixture and estimate.  (B, M, T), (B, 2, T) -> (B, 2, M)

    soft, floor (B, 2): as in `negative_snr`.  All errors follow from one Gram matrix,
    |x - a E|^2 = |x|^2 - 2 a E x + a E E' a'.
    """
    assignments = _assignments(estimates.shape[1], estimates.dtype, estimates.device)
    gram = estimates @ estimates.mT  # (B, M, M)
    products = mixtures @ estimates.mT  # (B, 2, M)
    quadratic = torch.einsum("kim,bmn,kin->bki", assignments, gram, assignments)
    linear = torch.einsum("kim,bim->bki", assignments, products)
    energy = mixtures.square().sum(-1)  # (B, 2)
    error = (energy.unsqueeze(1) * (1 + soft) - 2 * linear + quadratic).clamp_min(0) / estimates.shape[-1]
    return assignments[torch.log10(error + floor.unsqueeze(1) + QUIET).sum(-1).argmin(dim=1)]
