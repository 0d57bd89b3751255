"""Losses on embeddings: deep clustering, its whitened form, and attractors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from separate.losses.affinity import deep_clustering, whitened
from separate.losses.base import Loss
from separate.models.embedding import SOFT, similarity
from separate.models.layers import choose
from separate.targets import Target, audible, ibm

if TYPE_CHECKING:
    from separate.batch import Batch
    from separate.separator import Separation

OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "affinity": deep_clustering,
    "whitened": whitened,
}
WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {  # of the mixture's bins, (B, C, F, N) -> (B, F, N)
    "level": audible,
    "magnitude": lambda mixture, level: mixture.abs().sum(dim=1),
    "none": lambda mixture, level: torch.ones_like(mixture[:, 0].real),
}


class ClusteringLoss(Loss):
    """How far the embeddings are from grouping the bins as the sources do.

    objective: affinity (Hershey et al., 2016, eq. 1) or whitened (Wang et al., 2018, eq. 9).
    weights: level leaves out the bins more than `level` dB below the example's loudest (Hershey et al., 2016),
    magnitude weights each by its share of the mixture's magnitude (Wang et al., 2018), none counts all alike.
    target: a mask that says whose a bin is, ibm by default; averaged over the channels.
    A silent source owns no bin and changes nothing; a silent mixture costs 0, under whitened with level or magnitude
    too, with zero gradient.
    """

    needs = ("embeddings",)
    domains = ("mask",)

    def __init__(
        self, target: Target, objective: str = "affinity", weights: str = "level", level: float = -40.0
    ) -> None:
        super().__init__(target)
        self.objective = choose(objective, OBJECTIVES, "objective")
        self.weights = choose(weights, WEIGHTS, "weights")
        self.level = check_level(level)

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        masks = self.target(batch.source_spectrograms, batch.spectrogram).mean(dim=2)  # over channels: (B, S, F, N)
        costs = self.objective(
            rearrange(separation.embeddings, "b f n d -> b (n f) d"),
            rearrange(masks, "b s f n -> b (n f) s"),
            rearrange(self.weights(batch.spectrogram, self.level), "b f n -> b (n f)"),
        )
        return costs.mean(), {}


class AttractorLoss(Loss):
    """Mean squared error of magnitudes masked by similarity to the true sources' attractors (Chen et al., 2017, eq. 1).

    The attractors are those of the bins that each source dominates and that are within `level` dB of the loudest.
    membership: softmax or sigmoid.  A silent source's attractor is the origin, and its mask asks for silence.
    """

    needs = ("embeddings",)
    domains = ("spectrogram",)

    def __init__(self, target: Target, membership: str = "softmax", level: float = -40.0) -> None:
        super().__init__(target)
        self.share = choose(membership, SOFT, "membership")
        self.level = check_level(level)

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mixture, sources = batch.spectrogram, batch.source_spectrograms
        heard = ibm(sources, mixture).mean(dim=2) * audible(mixture, self.level).unsqueeze(1)
        points = rearrange(separation.embeddings.float(), "b f n d -> b (n f) d")
        scores = similarity(points, rearrange(heard, "b s f n -> b (n f) s"))
        masks = rearrange(self.share(scores), "b (n f) s -> b s 1 f n", f=mixture.shape[2])
        error = masks * mixture.abs().unsqueeze(1) - self.target(sources, mixture)
        return error.square().mean(), {}


def check_level(level: float) -> float:
    if level >= 0:
        raise ValueError(f"level={level} must be below 0 dB, the example's loudest bin")
    return level
