"""Normalisation of features over time, (B, F, M): global, cumulative or batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from separate.models.layers import choose

EPSILON = 1e-8  # of the variances, as in the paper's formulas


def cumulative_statistics(total: Tensor, square: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of everything up to each step.  total, square: (..., M), sums of `count` values a step."""
    seen = count * torch.arange(1, total.shape[-1] + 1, device=total.device, dtype=total.dtype)
    mean = total.cumsum(-1) / seen
    return mean, (square.cumsum(-1) / seen - mean.square()).clamp_min(0)


class CumulativeNorm(nn.Module):
    """Cumulative layer normalisation, cLN (Luo & Mesgarani, 2019, eq. 16-18): over the features of all steps so far.

    x: (B, F, M) -> the same shape; or (B, F, M, K), where the K frames of a step are normalised together.
    """

    def __init__(self, features: int, eps: float = EPSILON) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # sums over a whole recording need their digits
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
    """Normalisation of (B, F, M): global (gLN), cumulative (cLN) or batch; global is refused where causal."""
    make = choose(name, NORMS, "norm")
    if causal and name == "global":
        raise ValueError("norm=global averages over the whole recording, so that nothing is causal; "
                         "use norm=cumulative or norm=batch with causal=true")  # fmt: skip
    return make(features)
