"""Normalisation of features over frames: global, cumulative or batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from separate.models.layers import choose
from separate.numerics import without_autocast
from separate.shapes import Float

EPSILON = 1e-8  # added to the variances, as in the papers' formulas


def cumulative_statistics(
    total: Float[Tensor, "*B M"], square: Float[Tensor, "*B M"], count: int
) -> tuple[Float[Tensor, "*B M"], Float[Tensor, "*B M"]]:
    """Mean and variance of all values up to each step.

    total, square: sums of the values of each step and of their squares; count: number of values in a step.
    """
    counts = count * torch.arange(1, total.shape[-1] + 1, device=total.device, dtype=total.dtype)
    mean = total.cumsum(-1) / counts
    return mean, (square.cumsum(-1) / counts - mean.square()).clamp_min(0)


class CumulativeNorm(nn.Module):
    """Cumulative layer normalisation, cLN (Luo & Mesgarani, 2019, eq. 16-18): over the features of all steps so far.

    x: (B, F, M) or (B, F, M, K); the K frames of a step are normalised together.
    """

    def __init__(self, features: int, eps: float = EPSILON) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Float[Tensor, "B F M *K"]) -> Float[Tensor, "B F M *K"]:
        with without_autocast(x):  # sums over a whole recording need float32
            wide = x if x.dtype == torch.float64 else x.float()
            wide = wide[..., None] if x.ndim == 3 else wide  # (B, F, M, K)
            total, square = wide.sum((1, 3)), wide.square().sum((1, 3))
            mean, variance = cumulative_statistics(total, square, wide.shape[1] * wide.shape[3])
            deviation = (variance + self.eps).sqrt()
            wide = (wide - mean[:, None, :, None]) / deviation[:, None, :, None]
            wide = wide * self.weight[:, None, None] + self.bias[:, None, None]
            return wide.reshape(x.shape).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {  # each of (B, F, M)
    "global": lambda features: nn.GroupNorm(1, features, eps=EPSILON),  # gLN, over features and time
    "cumulative": CumulativeNorm,
    "batch": nn.BatchNorm1d,
}


def make_norm(name: str, features: int, causal: bool = False) -> nn.Module:
    """Normalisation of (B, F, M): global (gLN), cumulative (cLN) or batch.

    ValueError for another name, and for global with causal=True.
    """
    norm_class = choose(name, NORMS, "norm")
    if causal and name == "global":
        raise ValueError(
            "norm=global averages over the whole recording, which is not causal; use norm=cumulative or norm=batch "
            "with causal=true"
        )
    return norm_class(features)
