"""Which estimate belongs to which reference: the assignment with the least total cost."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

MOST_ORDERS = 24  # those of 4 sources: more take longer to try than the Hungarian method needs


@lru_cache
def _orders(estimates: int, references: int, device: torch.device) -> Tensor:
    """(orders, S), on each device once: to move them there makes the host wait."""
    with torch.inference_mode(False):  # whoever asks first
        return torch.tensor(list(permutations(range(estimates), references))).to(device)


def best_permutation(pairwise: Tensor) -> Tensor:
    """pairwise: (B, M estimates, S references), a cost -> (B, S), the estimate that belongs to each reference.

    With M > S the estimates that are left over belong to none; ValueError for M < S.  Up to 24 orders are all tried
    (Yu et al., 2017), where the costs lie; beyond, and so for 5 sources, it is the Hungarian method (Kuhn, 1955) on
    the CPU.  An example with a cost that is not finite keeps its order.
    """
    _, estimates, references = pairwise.shape
    if estimates < references:
        raise ValueError(f"{estimates} estimates cannot be paired with {references} references; give at least as many")
    if math.perm(estimates, references) > MOST_ORDERS:
        return _hungarian(pairwise)
    orders = _orders(estimates, references, pairwise.device)  # (orders, S)
    cost = pairwise[:, orders, torch.arange(references, device=pairwise.device)].sum(-1)  # (B, orders)
    finite = pairwise.isfinite().all(-1).all(-1)
    return orders[cost.argmin(dim=1).where(finite, 0)]  # the first order changes nothing


def _hungarian(pairwise: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # slow to import, seldom needed

    costs = pairwise.detach().cpu().double().mT  # (B, S, M)
    unmoved = torch.arange(costs.shape[1])
    found = [torch.from_numpy(linear_sum_assignment(cost)[1]) if cost.isfinite().all() else unmoved for cost in costs]
    return torch.stack(found).to(pairwise.device)


def select(sources: Tensor, order: Tensor) -> Tensor:
    """sources: (B, M, ...) put into the order (B, S) that `best_permutation` found.  -> (B, S, ...)"""
    index = order.reshape(*order.shape, *[1] * (sources.ndim - 2)).expand(*order.shape, *sources.shape[2:])
    return sources.gather(1, index)


def match(reference: Tensor, estimates: Tensor, length: int | None = None, signed: bool = True) -> Tensor:
    """estimates (S, C, T) in the order in which their first `length` samples correlate best with the reference's.

    signed: an inverted source is another one; otherwise only the size of the correlation counts.
    Where all is silent every order is as good, and the estimates stay as they are.
    """
    head = estimates[..., :length]
    if signed:
        pairwise = torch.einsum("ict,jct->ij", head, reference[..., :length])
    else:
        pairwise = torch.einsum("ict,jct->ijc", head, reference[..., :length]).abs().sum(-1)
    return select(estimates.unsqueeze(0), best_permutation(-pairwise.unsqueeze(0))).squeeze(0)
