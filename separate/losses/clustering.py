"""Losses of embeddings: deep clustering, whitened deep clustering, and deep attractors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from separate.losses.affinity import deep_clustering, whitened
from separate.losses.base import Loss
from separate.models.layers import check_level, choose
from separate.targets import Target, audible

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation

OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "affinity": deep_clustering,
    "whitened": whitened,
}
WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {  # mixture (B, C, F, N), level -> weights (B, F, N)
    "level": audible,
    "magnitude": lambda mixture, level: mixture.abs().sum(dim=1),
    "none": lambda mixture, level: torch.ones_like(mixture[:, 0].real),
}


class ClusteringLoss(Loss):
    """Deep clustering: the distance between the affinities of embeddings and those of the sources.

    objective: affinity (Hershey et al., 2016, eq. 1) or whitened (Wang et al., 2018, eq. 9).
    weights: level leaves out the bins more than `level` dB below the loudest bin of the example (Hershey et al., 2016),
    magnitude weights each bin by the magnitude of the mixture (Wang et al., 2018), none weights all bins equally.
    target: a mask that assigns bins to sources, ibm by default; averaged over the channels.
    A silent source owns no bin and has no effect.  A silent mixture costs 0 with zero gradient, except with
    weights=none.
    """

    needs = ("embeddings",)
    domains = ("mask",)
    keeps_levels = None

    def __init__(
        self, target: Target, objective: str = "affinity", weights: str = "level", level: float = -40.0
    ) -> None:
        super().__init__(target)
        self.objective = choose(objective, OBJECTIVES, "objective")
        self.weights = choose(weights, WEIGHTS, "weights")
        check_level(level)
        self.level = level

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        masks = self.target(batch.source_spectrograms, batch.spectrogram).mean(dim=2)  # over channels: (B, S, F, N)
        costs = self.objective(
            rearrange(separation.embeddings, "b f n d -> b (n f) d"),
            rearrange(masks, "b s f n -> b (n f) s"),
            rearrange(self.weights(batch.spectrogram, self.level), "b f n -> b (n f)"),
        )
        return costs.mean(), {}


class AttractorLoss(Loss):
    """Mean squared error of magnitudes masked by the attractors of the true sources (Chen et al., 2017, eq. 1).

    `membership` and `level` are options of the model, see `separate.models.embedding.Clusters`.
    The attractor of a silent source is the origin, and its reference is silence.
    """

    needs = ("embeddings",)
    domains = ("spectrogram",)

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        estimate = separation.ideal_masks * batch.spectrogram.abs().unsqueeze(1)
        return (estimate - self.target(batch.source_spectrograms, batch.spectrogram)).square().mean(), {}
