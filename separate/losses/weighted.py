"""Weighted sums of losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from separate.losses.base import Loss, PairedLoss, pick
from separate.losses.permutation import best_permutation
from separate.targets import Target

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation


class WeightedSum(Loss):
    """A weighted sum of losses.  The terms are logged by name, before weighting.

    terms: {name: weight} or {name: {weight: 0.5, target: psa, and options of that loss}}.  The name is that of a file
    in conf/loss, or any name together with a class of your own: {name: {_target_: package.module.Class, weight: 0.5}}.
    A term has the target that it names, or else that of its file (tpsa, dc, si_sdr ...), or else the configured one
    (l1, mse).
    build_term: maps a name and its options to a loss, see `separate.loss_builder`.
    interchangeable: all terms that pair estimates with references share the order with the smallest weighted sum.
    """

    domains = None  # each term checks its own target

    def __init__(
        self,
        terms: Mapping[str, Any] | None,
        target: Target,
        build_term: Callable[[str, Mapping[str, Any]], Any],
        interchangeable: bool = False,
    ) -> None:
        if not terms:
            raise ValueError("terms is empty; name losses and weights, e.g. loss.terms={tpsa: 1, si_sdr: 0.1}")
        super().__init__(target)
        self.weight: dict[str, float] = {}
        self.parts = torch.nn.ModuleDict()
        for name, value in terms.items():
            options = dict(value) if isinstance(value, Mapping) else {"weight": value}
            self.weight[name] = _weight(name, options.pop("weight", 1.0))
            self.parts[name] = _term(name, build_term(name, options))
        self.interchangeable = interchangeable
        self.needs = tuple(dict.fromkeys(head for part in self._losses() for head in part.needs))
        kept = [part.keeps_levels for part in self._losses() if part.keeps_levels is not None]
        self.keeps_levels = any(kept) if kept else None  # one term is enough to fix the levels

    @property
    def spectral(self) -> bool:
        return any(part.spectral for part in self._losses())

    def _losses(self) -> list[Any]:
        return list(self.parts.values())

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}
        pairwise: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if self.interchangeable and isinstance(part, PairedLoss):
                pairwise[name] = part.pairwise(*part.signals(separation, batch))
            else:
                found[name] = part(separation, batch)[0]
        if pairwise:
            total = torch.stack([self.weight[name] * costs.detach() for name, costs in pairwise.items()]).sum(0)
            order = best_permutation(total)
            found.update({name: pick(costs, order).mean() for name, costs in pairwise.items()})
        parts = {name: found[name] for name in self.parts}
        return torch.stack([self.weight[name] * part for name, part in parts.items()]).sum(), parts


def _weight(name: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"terms.{name}: the weight {weight} must be a number above 0; leave out terms without weight")
    return float(weight)


def _term(name: str, loss: Any) -> Loss:
    if not isinstance(loss, Loss) or isinstance(loss, WeightedSum) or loss.without_sources:
        raise ValueError(f"terms.{name}: {type(loss).__name__} cannot be a term of a sum; name a loss of one term")
    return loss
