"""Deep clustering: the distance between the affinities of embeddings and of sources, from small Gram matrices.

For P time-frequency bins, V (B, P, D) holds the embedding of each bin, Y (B, P, S) the share of each source in the bin
(one-hot for a hard assignment), and w (B, P) the weight of the bin.  With W = diag(w / sum of w) all losses here follow
from V^T W V, V^T W Y and Y^T W Y, without a P x P affinity matrix.  Only V has a gradient.
float16 and bfloat16 inputs are computed in float32; the small matrices are summed in float64 (float32 on MPS).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from separate.numerics import block, result_dtype, sum_dtype
from separate.shapes import Bool, Float

RIDGE = 1e-5  # added to each eigenvalue, re their mean; the rounding error of float32 products is about 1e-6


def deep_clustering(
    embeddings: Float[Tensor, "B P D"],
    assignments: Float[Tensor, "_ _ S"],
    weights: Float[Tensor, "_ _"] | Bool[Tensor, "_ _"],
) -> Float[Tensor, " B"]:
    """|W^1/2 (V V^T - Y Y^T) W^1/2|^2, squared Frobenius norm (Hershey et al., 2016).  -> (B,)

    Equal to |V^T W V|^2 - 2 |V^T W Y|^2 + |Y^T W Y|^2.  W sums to 1, so that the loss is a mean over pairs of bins.
    0 where all weights are 0.
    """
    vv, vy, yy, _ = _weighted_grams(embeddings, assignments, weights)
    loss = _energy(vv) - 2 * _energy(vy) + _energy(yy)
    return loss.to(result_dtype(embeddings))


def whitened(
    embeddings: Float[Tensor, "B P D"],
    assignments: Float[Tensor, "_ _ S"],
    weights: Float[Tensor, "_ _"] | Bool[Tensor, "_ _"],
) -> Float[Tensor, " B"]:
    """D - tr((V^T W V)^-1 V^T W Y (Y^T W Y)^-1 Y^T W V), whitened k-means (Wang et al., 2018).  -> (B,)

    Between D - S (the embeddings determine the sources linearly) and D (they are unrelated).  Invariant to invertible
    maps of V.
    A ridge of 1e-5 of the mean eigenvalue gives finite values and gradients for silent sources, collapsed embeddings
    and fewer bins than dimensions.  0 where all weights are 0, NaN where V has NaN.
    """
    vv, vy, yy, total = _weighted_grams(embeddings, assignments, weights)
    (of_v, failed_v), (of_y, failed_y) = _cholesky(vv), _cholesky(yy)
    explained = (torch.cholesky_solve(vy, of_v) * torch.cholesky_solve(vy.mT, of_y).mT).sum((1, 2))
    loss = (embeddings.shape[-1] - explained).masked_fill(failed_v | failed_y, torch.nan)
    return torch.where(total > 0, loss, 0).to(result_dtype(embeddings))


def _weighted_grams(embeddings: Tensor, assignments: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V^T W V (B, D, D), V^T W Y (B, D, S), Y^T W Y (B, S, S) with w / sum of w, and that sum (B,)."""
    bins = embeddings.shape[:2]
    if assignments.shape[:2] != bins or weights.shape != bins:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)}, assignments {tuple(assignments.shape)} and weights "
            f"{tuple(weights.shape)} must agree in batch and bins: (B, P, D), (B, P, S) and (B, P)"
        )
    total = weights.sum(1, dtype=sum_dtype(embeddings))
    share = torch.where(total > 0, total, 1).reciprocal()[:, None, None]
    vv, vy, yy = _Grams.apply(embeddings, assignments, weights)
    return vv * share, vy * share, yy * share, total


class _Grams(torch.autograd.Function):
    """V^T diag(w) V, V^T diag(w) Y, Y^T diag(w) Y in blocks of bins: one pass over V forward, one backward."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (batch, _, size), sources, dtype = v.shape, y.shape[-1], sum_dtype(v)
        vv = v.new_zeros(batch, size, size, dtype=dtype)
        yv = v.new_zeros(batch, sources, size, dtype=dtype)
        yy = v.new_zeros(batch, sources, sources, dtype=dtype)
        with torch.autocast(v.device.type, enabled=False):
            for _, v_, y_, w_, work in _blocks(v, y, w):
                weighted = torch.mul(v_, w_, out=work)
                vv += torch.bmm(weighted.mT, v_)
                yv += torch.bmm(y_.mT, weighted)
                yy += torch.bmm((y_ * w_).mT, y_)
        ctx.save_for_backward(v, y, w)
        ctx.mark_non_differentiable(yy)
        return vv, yv.mT, yy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_vv: Tensor, d_vy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """dV = diag(w) (V (d_vv + d_vv^T) + Y d_vy^T)"""
        v, y, w = ctx.saved_tensors
        of_v, of_y = ((d_vv + d_vv.mT).to(result_dtype(v)), d_vy.mT.to(result_dtype(v)))
        gradient = torch.empty_like(v)
        with torch.autocast(v.device.type, enabled=False):
            for span, v_, y_, w_, work in _blocks(v, y, w):
                torch.bmm(v_, of_v, out=work).baddbmm_(y_, of_y)
                torch.mul(work, w_, out=gradient[:, span])
        return gradient, None, None


def _blocks(v: Tensor, y: Tensor, w: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Blocks of L bins: their span, v (B, L, D), y (B, L, S), w (B, L, 1), in at least float32, and a buffer like v."""
    (batch, bins, size), dtype = v.shape, result_dtype(v)
    length = min(bins, block(v, batch * size))
    work = v.new_empty(batch, length, size, dtype=dtype)
    for start in range(0, bins, length):
        span = slice(start, min(start + length, bins))
        space = work[:, : span.stop - start]
        yield span, v[:, span].to(dtype), y[:, span].to(dtype), w[:, span, None].to(dtype), space


def _cholesky(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor (B, n, n) of gram + ridge, and whether (B,) the factorisation failed."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # of the eigenvalues
    ridge = (RIDGE * mean + 1e-30) * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + ridge)
    return factor, info != 0


def _energy(gram: Tensor) -> Tensor:
    """Squared Frobenius norm, (B, n, m) -> (B,)."""
    return gram.square().sum((1, 2))
