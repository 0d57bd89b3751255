"""Base classes of losses: required heads, targets, and the pairing of estimates with references."""

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
    """A function of a separation and its batch, to minimise.  Subclasses implement `forward`.

    needs: the heads that the network must have (`masks`, `complex_masks`, `embeddings`, `waveforms`), or `estimates`,
    which any network with differentiable masks or waveforms provides.
    domains: the domains of the targets that the loss takes, see `separate.targets`, or None for any; ValueError for a
    target of another domain.
    without_sources: the loss needs mixtures only; most_estimates: then the largest number of estimates.
    neighbours: whether `prepare` combines each example of a batch with the one before it.
    keeps_levels: whether the loss fixes level and polarity of the estimates; None if it does not compare estimates.
    """

    needs: tuple[str, ...] = ("estimates",)
    domains: tuple[str, ...] | None = ("waveform",)
    without_sources = False
    most_estimates: int = 0
    neighbours = False
    keeps_levels: bool | None = True

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.domain = domain_of(target)
        if self.domains is not None and self.domain not in self.domains:
            usable = [name for name, other in TARGETS.items() if other.domain in self.domains]
            raise ValueError(
                f"{type(self).__name__} compares a {' or '.join(self.domains)} and the target is a {self.domain}; "
                f"it works with target={', '.join(usable)}"
            )

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch that the network separates: the given one, or one made from it."""
        if self.spectral:
            _ = batch.source_spectrograms  # the STFT of the mixture is their sum, which saves a transform
        return batch

    @property
    def spectral(self) -> bool:
        """Whether the loss compares spectrograms or masks."""
        return self.domain != "waveform"

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the examples, (), and its parts by name for the log, {} if there are none."""
        raise NotImplementedError("subclasses of Loss implement forward(separation, batch)")


class PairedLoss(Loss):
    """A loss that compares each estimate with a reference.  Subclasses implement `signals` and `distance`.

    interchangeable: pair estimates with references so that the loss of each example is smallest (utterance-level
    permutation invariant training, PIT, Yu et al., 2017); otherwise pair them in their order.
    source_weights: the weight of each source by name, 1 for sources without an entry; sources: the names of all.
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
        """(B, S) -> (), the mean with the weights of the sources."""
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
    """The losses of the chosen pairs.  pairwise: (B, M, S); order: (B, S), from `best_permutation` -> (B, S)"""
    return pairwise.gather(1, order.unsqueeze(1)).squeeze(1)


def domain_of(target: Target) -> str:
    """The domain of a target, which may be a functools.partial."""
    return getattr(getattr(target, "func", target), "domain", "function without a domain (see separate.targets.target)")


def _source_weights(
    weights: Mapping[str, float] | None, sources: Sequence[str] | None, interchangeable: bool
) -> Tensor | None:
    """The weights (S,), or None; ValueError for unknown sources, negative weights, and weights that are all 0."""
    if weights is None:
        return None
    if interchangeable:
        raise ValueError("source_weights need sources with names, and these are interchangeable; leave them out")
    unknown = [name for name in weights if name not in (sources or ())]
    if unknown or min(weights.values(), default=1) < 0:
        raise ValueError(
            f"source_weights={dict(weights)} must give sources of {', '.join(sources or ())} a weight of at least 0"
        )
    by_source = torch.tensor([float(weights.get(name, 1.0)) for name in sources or ()])
    if by_source.sum() == 0:
        raise ValueError(f"source_weights={dict(weights)} leave nothing to learn; give a source a weight above 0")
    return by_source
