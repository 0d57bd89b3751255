"""Which estimate belongs to which reference: the assignment with the least total cost."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

MOST_SOURCES = 6  # 720 orders to try; beyond, exhaustive search is the wrong method


@lru_cache
def _orders(sources: int) -> Tensor:
    return torch.tensor(list(permutations(range(sources))))


def best_permutation(pairwise: Tensor) -> Tensor:
    """pairwise: (B, S estimates, S references), a cost -> (B, S), the estimate that belongs to each reference.

    Exhaustive over the S! orders (Yu et al., 2017), for at most 6 sources: ValueError beyond.
    """
    sources = pairwise.shape[-1]
    if sources > MOST_SOURCES:
        raise ValueError(f"{sources} interchangeable sources: the exhaustive search stops at {MOST_SOURCES}")
    orders = _orders(sources).to(pairwise.device)  # (P, S)
    cost = pairwise[:, orders, torch.arange(sources, device=pairwise.device)].sum(-1)  # (B, P)
    return orders[cost.argmin(dim=1)]


def select(sources: Tensor, order: Tensor) -> Tensor:
    """sources: (B, S, ...) put into the order (B, S) that `best_permutation` found."""
    index = order.reshape(*order.shape, *[1] * (sources.ndim - 2)).expand_as(sources)
    return sources.gather(1, index)


def match(reference: Tensor, estimates: Tensor, length: int | None = None) -> Tensor:
    """estimates (S, C, T) in the order in which their first `length` samples correlate best with the reference's.

    Where all is silent every order is as good, and the estimates stay as they are.
    """
    head = estimates[..., :length]
    pairwise = -torch.einsum("ict,jct->ij", head, reference[..., :length])
    return select(estimates.unsqueeze(0), best_permutation(pairwise.unsqueeze(0))).squeeze(0)
