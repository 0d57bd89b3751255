"""Pairing of estimates with references: the permutation with the smallest total loss."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from separate.numerics import sum_dtype
from separate.shapes import Float, Inexact, Int

MOST_ORDERS = 24  # permutations of 4 sources; with more the Hungarian method is faster
MOST_ON_DEVICE = 16  # estimates, which have 2^16 subsets


@lru_cache
def _orders(estimates: int, references: int, device: torch.device) -> Tensor:
    """All permutations, (orders, S), cached on each device because a copy makes the host wait."""
    with torch.inference_mode(False):  # also on a first call within inference mode
        return torch.tensor(list(permutations(range(estimates), references))).to(device)


def best_permutation(pairwise: Float[Tensor, "B M S"]) -> Int[Tensor, "B S"]:
    """Indices of the estimates for each reference.  pairwise: losses (B, M estimates, S references) -> (B, S)

    With M > S some estimates have no reference; ValueError for M < S.  Up to 24 permutations are searched exhaustively
    (Yu et al., 2017).  For more, the CPU uses the Hungarian method (Kuhn, 1955); other devices use dynamic programming
    over the subsets of estimates (Held and Karp, 1962), so that the host does not wait, and copy the losses to the CPU
    beyond 16 estimates.  An example with a loss that is not finite keeps its order.
    """
    _, estimates, references = pairwise.shape
    if estimates < references:
        raise ValueError(f"{estimates} estimates cannot be paired with {references} references; give at least as many")
    if math.perm(estimates, references) > MOST_ORDERS:
        on_device = pairwise.device.type != "cpu" and estimates <= MOST_ON_DEVICE
        return by_subsets(pairwise) if on_device else _hungarian(pairwise)
    orders = _orders(estimates, references, pairwise.device)  # (orders, S)
    cost = pairwise[:, orders, torch.arange(references, device=pairwise.device)].sum(-1)  # (B, orders)
    return orders[cost.argmin(dim=1).where(_finite(pairwise), 0)]  # the first order changes nothing


def _finite(pairwise: Tensor) -> Tensor:
    """Whether all losses of an example are finite, (B,)."""
    return pairwise.isfinite().all(-1).all(-1)


def _hungarian(pairwise: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # slow to import, seldom needed

    costs = pairwise.detach().cpu().double().mT  # (B, S, M); the host waits
    identity = torch.arange(costs.shape[1])
    found = [torch.from_numpy(linear_sum_assignment(cost)[1]) if cost.isfinite().all() else identity for cost in costs]
    return torch.stack(found).to(pairwise.device)


def by_subsets(pairwise: Float[Tensor, "B M S"]) -> Int[Tensor, "B S"]:
    """`best_permutation` by dynamic programming, in S rounds of 2^M x M steps.

    Round s finds the smallest loss of pairing each subset of s estimates with the first s references, and the estimate
    of reference s.  The best subset of S estimates is then traced back.
    """
    batch, estimates, references = pairwise.shape
    subsets = torch.arange(2**estimates, device=pairwise.device).unsqueeze(1)  # (2^M, 1), a bit for each estimate
    bits = 2 ** torch.arange(estimates, device=pairwise.device)  # (M,)
    without = torch.where(subsets & bits > 0, subsets ^ bits, 0)  # (2^M, M)
    penalty = torch.where(subsets & bits > 0, 0.0, torch.inf)
    costs = pairwise.detach().to(sum_dtype(pairwise))
    smallest = torch.where(subsets.T == 0, 0.0, torch.inf).to(costs).expand(batch, -1)  # (B, 2^M)
    last = []
    for reference in range(references):
        smallest, chosen = (smallest[:, without] + penalty + costs[:, None, :, reference]).min(dim=2)
        last.append(chosen)  # (B, 2^M)
    subset = smallest.argmin(dim=1, keepdim=True)
    order = []
    for chosen in reversed(last):
        order.append(chosen.gather(1, subset))
        subset = subset ^ bits[order[-1]]
    identity = torch.arange(references, device=pairwise.device)
    return torch.where(_finite(pairwise).unsqueeze(1), torch.cat(order[::-1], dim=1), identity)


def select(sources: Inexact[Tensor, "B M *X"], order: Int[Tensor, "B S"]) -> Inexact[Tensor, "B S *X"]:
    """Select and reorder sources (B, M, ...) by the order (B, S) from `best_permutation`.  -> (B, S, ...)"""
    index = order.reshape(*order.shape, *[1] * (sources.ndim - 2)).expand(*order.shape, *sources.shape[2:])
    return sources.gather(1, index)


def match(
    reference: Float[Tensor, "S C _"], estimates: Float[Tensor, "S C T"], length: int | None = None, signed: bool = True
) -> Float[Tensor, "S C T"]:
    """Reorder estimates (S, C, T) so that their first `length` samples correlate best with the reference.

    signed: use the signed correlation, else its magnitude, which ignores polarity.  Silent estimates keep their order.
    """
    head = estimates[..., :length]
    if signed:
        pairwise = torch.einsum("ict,jct->ij", head, reference[..., :length])
    else:
        pairwise = torch.einsum("ict,jct->ijc", head, reference[..., :length]).abs().sum(-1)
    return select(estimates.unsqueeze(0), best_permutation(-pairwise.unsqueeze(0))).squeeze(0)
