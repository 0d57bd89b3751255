"""Base classes of losses: needs, targets, and the pairing of estimates with references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from separate.losses.permutation import best_permutation
from separate.shapes import Float, Int
from separate.targets import TARGETS, Target

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation


class Loss(nn.Module):
    """A scalar to minimise, a function of a separation and its batch.  Subclasses implement `forward`.

    needs: the heads that the network must have (`masks`, `complex_masks`, `embeddings`, `waveforms`), or `estimates`,
    which networks with differentiable masks or waveforms give.
    domains: the domains of the targets that it takes, see `separate.targets`, or None for any; ValueError for a target
    of another domain.
    without_sources: it sees mixtures alone.  most_estimates: the largest number of estimates that such a loss takes.
    keeps_levels: whether it fixes level and polarity of the estimates; None for a loss that does not compare them.
    """

    needs: tuple[str, ...] = ("estimates",)
    domains: tuple[str, ...] | None = ("waveform",)
    without_sources = False
    most_estimates: int = 0
    keeps_levels: bool | None = True

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.domain = domain_of(target)
        if self.domains is not None and self.domain not in self.domains:
            fitting = [name for name, other in TARGETS.items() if other.domain in self.domains]
            raise ValueError(
                f"{type(self).__name__} compares a {' or '.join(self.domains)} and the target is a {self.domain}; "
                f"it works with target={', '.join(fitting)}"
            )

    def prepare(self, batch: Batch) -> Batch:
        """The batch that the network separates: the given one, or another made of it."""
        if self.spectral:
            _ = batch.source_spectrograms  # the STFT of the mixture is their sum, which saves a transform
        return batch

    @property
    def spectral(self) -> bool:
        """Whether the loss compares spectrograms or masks."""
        return self.domain != "waveform"

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the examples, (), and its parts by name for the log, {} for a loss of one part."""
        raise NotImplementedError("subclasses of Loss implement forward(separation, batch)")


class PairedLoss(Loss):
    """A loss that compares each estimate with a reference.  Subclasses implement `signals` and `distance`.

    interchangeable: pair estimates with references for the least loss of each example (Yu et al., 2017, utterance-level
    PIT); otherwise in their order.
    source_weights: the weight of each source by name, 1 if it is not named; sources: the names.
    """

    def __init__(
        self,
        target: Target,
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target)
        self.interchangeable = interchangeable
        self.weights: Tensor | None
        self.register_buffer("weights", _source_weights(source_weights, sources, interchangeable))

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.interchangeable:
            return self.mean(self.matched(*self.signals(separation, batch))), {}
        pairwise = self.pairwise(*self.signals(separation, batch))
        return pick(pairwise, best_permutation(pairwise.detach())).mean(), {}

    def mean(self, costs: Float[Tensor, "B S"]) -> Float[Tensor, ""]:
        """(B, S) -> (), the mean weighted by source."""
        return costs.mean() if self.weights is None else (costs * self.weights).sum(1).mean() / self.weights.sum()

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        """Estimates and references to compare, each (B, S, ...)."""
        raise NotImplementedError("subclasses of PairedLoss implement signals(separation, batch)")

    def matched(self, estimate: Any, reference: Any) -> Tensor:
        """(B, S, ...) twice -> (B, S), the loss of each estimate against the reference of the same index."""
        return self.distance(estimate, reference)

    def pairwise(self, estimate: Any, reference: Any) -> Tensor:
        """(B, M, ...), (B, S, ...) -> (B, M, S), the loss of each estimate against each reference."""
        return self.distance(estimate.unsqueeze(2), reference.unsqueeze(1))

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """(..., C, F, N) or (..., T) twice, broadcast -> (...)."""
        raise NotImplementedError("subclasses of PairedLoss implement distance(estimate, reference)")


def pick(pairwise: Float[Tensor, "B M S"], order: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """The losses of the chosen pairs.  pairwise: (B, M, S), order: (B, S) of `best_permutation` -> (B, S)"""
    return pairwise.gather(1, order.unsqueeze(1)).squeeze(1)


def domain_of(target: Target) -> str:
    """The domain of a target, with arguments bound or not."""
    return getattr(getattr(target, "func", target), "domain", "function without a domain (see separate.targets.target)")


def _source_weights(
    weights: Mapping[str, float] | None, sources: Sequence[str] | None, interchangeable: bool
) -> Tensor | None:
    if weights is None:
        return None
    if interchangeable:
        raise ValueError("source_weights need sources with names, and these are interchangeable; leave them out")
    unknown = [name for name in weights if name not in (sources or ())]
    if unknown or min(weights.values(), default=1) < 0:
        raise ValueError(
            f"source_weights={dict(weights)} must give sources of {', '.join(sources or ())} a weight of at least 0"
        )
    found = torch.tensor([float(weights.get(name, 1.0)) for name in sources or ()])
    if found.sum() == 0:
        raise ValueError(f"source_weights={dict(weights)} leave nothing to learn; give a source a weight above 0")
    return found
