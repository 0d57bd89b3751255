"""Weighted k-means of a batch of point sets, computed in blocks of points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from separate.models.layers import check_positive
from separate.numerics import block, result_dtype, sum_dtype, wait_for
from separate.shapes import Float, Int

TOLERANCE = 1e-4  # squared shift of the centres below which k-means has converged, re the mean variance of a dimension


@dataclass(frozen=True)
class Search:
    """Options of k-means.

    starts: number of initialisations, of which the one with the smallest inertia wins; iterations: the largest number.
    seed: the only source of randomness, on every device.
    sample: the centres of a larger set are fitted to this number of points, drawn by weight, so that time and memory
    hardly grow with the set.
    """

    starts: int = 4
    iterations: int = 30
    seed: int = 0
    sample: int = 2**15


SEARCH = Search()


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "B P D"],
    clusters: int,
    weights: Float[Tensor, "_ _"] | None = None,  # (B, P), checked below
    search: Search = SEARCH,
) -> Float[Tensor, "B {clusters} D"]:
    """Centres (B, K, D) that minimise the inertia sum_p w_p min_k |x_p - c_k|^2 of each of B point sets.

    points: (B, P, D) float; weights: (B, P) >= 0, None for equal weights.  Points of weight 0 are ignored, unless all
    weights are 0.  Lloyd's algorithm, initialised by greedy k-means++ (Arthur and Vassilvitskii, 2007).  An empty
    cluster moves to the farthest point; with fewer distinct points than clusters, centres coincide.
    Computed in at least float32, returned in the dtype of the points.  ValueError for shapes that do not match.
    """
    check_positive(clusters=clusters, starts=search.starts, iterations=search.iterations, sample=search.sample)
    if points.ndim != 3 or 0 in points.shape or (weights is not None and weights.shape != points.shape[:2]):
        of = "" if weights is None else f" and weights {tuple(weights.shape)}"
        raise ValueError(f"points {tuple(points.shape)}{of} must be (B, P, D) and (B, P), with at least one point")
    generator = torch.Generator().manual_seed(search.seed)  # on the CPU, so that every device draws the same
    with torch.autocast(points.device.type, enabled=False):
        x, w = _sample(points, weights, search.sample, generator)  # (B, N, D), (B, N)
        origin = torch.bmm(w.unsqueeze(1), x)  # (B, 1, D), the mean, where rounding errors are least
        x = x - origin
        centres = _plus_plus(x, w, clusters, search.starts, generator)  # (B, R, K, D)
        weighted = torch.cat([x * w.unsqueeze(2), w.unsqueeze(2)], dim=2)  # (B, N, D + 1)
        tolerance = TOLERANCE * (w * x.square().mean(2)).sum(1, keepdim=True)  # (B, 1)
        for _ in range(search.iterations):
            moved = _lloyd(x, weighted, centres)
            shift = (moved - centres).square().sum((2, 3))  # (B, R)
            centres = moved
            if wait_for((shift <= tolerance).all()):
                break
        gain = torch.bmm(_scores(x, centres).amax(2), w.unsqueeze(2))  # (B, R, 1): inertia = constant - 2 gain
        best = gain.argmax(1).reshape(-1, 1, 1, 1).expand(-1, 1, *centres.shape[2:])
        return (centres.gather(1, best).squeeze(1) + origin).to(points.dtype)


@torch.no_grad()
def assign(points: Float[Tensor, "B P D"], centres: Float[Tensor, "B K D"]) -> Int[Tensor, "B P"]:
    """Index of the centre nearest to each point, int32."""
    labels = points.new_empty(points.shape[:2], dtype=torch.int32)
    for span, x in _blocks(points, centres):
        labels[:, span] = _nearest(x, centres)
    return labels


def _blocks(points: Tensor, centres: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of L points: their span, and the points (B, L, D) in at least float32."""
    batch, count, size = points.shape
    length = block(points, batch * max(size, centres.shape[1]))
    for start in range(0, count, length):
        span = slice(start, min(start + length, count))
        with torch.autocast(points.device.type, enabled=False):
            yield span, points[:, span].to(result_dtype(points))


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre (B, K, D) nearest to each point (B, N, D).  -> (B, N)"""
    return _offset_scores(x, centres).max(1).indices  # argmax over dimension 1 is thirty times slower on a CPU


def _scores(x: Tensor, centres: Tensor) -> Tensor:
    """<x, c> - |c|^2 / 2, largest for the nearest centre.  (B, N, D), (B, R, K, D) -> (B, R, K, N)"""
    flat = centres.flatten(1, 2)
    scores = torch.baddbmm(-0.5 * flat.square().sum(2, keepdim=True), flat, x.mT)
    return scores.unflatten(1, centres.shape[1:3])


def _offset_scores(x: Tensor, centres: Tensor) -> Tensor:
    """`_scores` minus a term common to all centres, exact for points far from 0.  (B, N, D), (B, K, D) -> (B, K, N)"""
    centres = centres.to(x.dtype)
    middle = centres.mean(1, keepdim=True)
    away = centres - middle
    return torch.baddbmm(-0.5 * (away * (centres + middle)).sum(2, keepdim=True), away, x.mT)


def _lloyd(x: Tensor, weighted: Tensor, centres: Tensor) -> Tensor:
    """One round of Lloyd's algorithm: move each centre (B, R, K, D) to the mean of its nearest points (B, N, D).

    weighted: (B, N, D + 1), w x and w.
    """
    scores = _scores(x, centres)
    best = scores.amax(2, keepdim=True)  # (B, R, 1, N)
    nearest = torch.eq(scores, best, out=scores)  # a tie counts for both
    sums = torch.bmm(nearest.flatten(1, 2), weighted).unflatten(1, centres.shape[1:3])  # (B, R, K, D + 1)
    mass = sums[..., -1:]
    empty = mass == 0
    moved = sums[..., :-1] / mass
    if x.device.type != "cpu" or empty.any():  # on other devices the host would wait for empty.any()
        return torch.where(empty, _farthest(x, weighted[..., -1], best.squeeze(2), empty.squeeze(3)), moved)
    return moved


def _farthest(x: Tensor, w: Tensor, best: Tensor, empty: Tensor) -> Tensor:
    """For the n-th empty cluster, the point that is n-th farthest from its nearest centre.  -> (B, R, K, D)"""
    distance = x.square().sum(2).unsqueeze(1) - 2 * best  # (B, R, N)
    distance = distance.clamp_min(0).masked_fill(w.unsqueeze(1) == 0, -1)
    ranked = distance.topk(min(empty.shape[2], x.shape[1])).indices
    rank = (empty.cumsum(2) - 1).clamp(0, ranked.shape[2] - 1)
    return _take(x, ranked.gather(2, rank))


def _plus_plus(x: Tensor, w: Tensor, clusters: int, starts: int, generator: torch.Generator) -> Tensor:
    """k-means++: draw centres (B, R, K, D) from the points, by squared distance to the nearest centre drawn before.

    Greedy as in scikit-learn: of 2 + log K candidates keep the one with the smallest inertia.
    """
    square, w = x.square().sum(2)[:, None, None], w[:, None, None]  # (B, 1, 1, N)
    candidates = _take(x, _draw(w.squeeze(2).expand(-1, starts, -1), 1, generator))  # (B, R, 1, D)
    distance = torch.full_like(square, torch.inf)
    centres = []
    for trials in [2 + int(math.log(clusters))] * clusters:
        nearer = (square - 2 * _scores(x, candidates)).clamp_min(0).minimum(distance)  # (B, R, trials, N)
        best = (w * nearer).sum(3, keepdim=True).argmin(2, keepdim=True)  # (B, R, 1, 1)
        centres.append(candidates.gather(2, best.expand(-1, -1, -1, x.shape[2])))
        distance = nearer.gather(2, best.expand(-1, -1, -1, x.shape[1]))  # (B, R, 1, N)
        candidates = _take(x, _draw((w * distance).squeeze(2), trials, generator))
    return torch.cat(centres, dim=2)


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (B, R, count) of points, drawn with probabilities proportional to mass (B, R, N)."""
    below = mass.cumsum(2)
    chance = 1 - torch.rand(*mass.shape[:2], count, generator=generator)  # in (0, 1]
    return torch.searchsorted(below, chance.to(mass, non_blocking=True) * below[..., -1:]).clamp_max(mass.shape[2] - 1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Points (B, N, D) at indices (B, R, count) -> (B, R, count, D)"""
    return x.gather(1, index.flatten(1).unsqueeze(2).expand(-1, -1, x.shape[2])).unflatten(1, index.shape[1:])


def _sample(points: Tensor, weights: Tensor | None, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All points, or `count` drawn with probabilities proportional to weights, (B, N, D); and weights that sum to 1."""
    batch, bins, size = points.shape
    dtype = result_dtype(points)
    if bins <= count:
        w = points.new_ones(batch, bins, dtype=dtype) if weights is None else weights.to(dtype)
        w = torch.where(w.sum(1, keepdim=True) > 0, w, 1)
        return points.to(dtype), w / w.sum(1, keepdim=True)
    chance = 1 - torch.rand(batch, count, generator=generator, dtype=torch.float64)
    chance = (torch.arange(count) + chance) / count  # stratified: one number in each of `count` equal parts of (0, 1]
    chance = chance.to(points.device, sum_dtype(points), non_blocking=True)
    index = (chance * bins).ceil().long() - 1
    if weights is not None:
        parts = weights.split(block(weights, 8 * batch), dim=1)
        total = torch.stack([part.to(sum_dtype(points)).sum(1) for part in parts]).sum(0).unsqueeze(1)
        passed, wanted, by_weight = torch.zeros_like(total), chance * total, torch.zeros_like(index)
        for part in parts:
            below = part.to(sum_dtype(points)).cumsum(1)
            by_weight += torch.searchsorted(below, wanted - passed)  # 0, the whole block, or the points before it
            passed += below[:, -1:]
        index = torch.where(total > 0, by_weight, index)
    index = index.clamp(0, bins - 1)
    w = points.new_full((batch, count), 1 / count, dtype=dtype)
    return points.gather(1, index.unsqueeze(2).expand(-1, -1, size)).to(dtype), w
