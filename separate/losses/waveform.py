"""Losses on samples, through the differentiable inverse STFT where the network gives masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from separate.evaluation.sdr import si_sdr
from separate.losses.base import Loss

if TYPE_CHECKING:
    from separate.batch import Batch
    from separate.separator import Separation


class SISDRLoss(Loss):
    """Negative SI-SDR in dB (Le Roux et al., 2019), channels taken together.

    A silent reference or estimate costs about 69 dB, the floor of `si_sdr` in float32, with a finite gradient.
    """

    def pair(self, separation: Separation, batch: Batch) -> tuple[Tensor, Tensor]:
        return separation.estimates, self.target(batch.sources, batch.mixture)

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return -si_sdr(estimate.flatten(-2), reference.flatten(-2))
