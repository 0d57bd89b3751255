"""The contract of a loss: what it needs of a network, which targets it takes, and the permutation of sources."""

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
    """A scalar to minimise, made of a separation and the batch that it is of.

    needs: the heads that the network must have (`masks`, `complex_masks`, `embeddings`, `waveforms`), or `estimates`,
    which all give whose masks or waveforms are differentiable.
    domains: what its target may be compared with, see `separate.targets`; ValueError for a target of another one.
    None takes any.  without_sources: it uses mixtures alone.
    keeps_levels: whether it fixes level and polarity of the estimates; None where it does not compare them.
    """

    needs: tuple[str, ...] = ("estimates",)
    domains: tuple[str, ...] | None = ("waveform",)
    without_sources = False
    most_estimates: int = 0  # that it can share out, where it has no sources
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
        """The batch that the network is to separate, with what is cheaper to make before the network sees it."""
        if self.spectral:
            _ = batch.source_spectrograms  # so that the mixture's is their sum, and one transform is saved
        return batch

    @property
    def spectral(self) -> bool:
        """Whether it compares spectrograms or masks."""
        return self.domain != "waveform"

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the examples, and the named parts that it is made of (none where it is one)."""
        raise AssertionError("a loss says what it costs")


class PairedLoss(Loss):
    """A loss that compares each estimate with a reference.  A subclass says what it compares, and how.

    interchangeable: pair estimates and references the best way for each example, over the whole of it (Yu et al.,
    2017, PIT); otherwise the first belongs to the first.
    source_weights: how much each named source counts, 1 if it is not named; sources: their names.
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
        """(B, S) -> their mean, weighted by source."""
        return costs.mean() if self.weights is None else (costs * self.weights).sum(1).mean() / self.weights.sum()

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        """What is compared, estimates and references, each (B, S, ...)."""
        raise AssertionError("a loss says what it compares")

    def matched(self, estimate: Any, reference: Any) -> Tensor:
        """(B, S, ...) twice -> (B, S), what each estimate costs against the reference beside it."""
        return self.distance(estimate, reference)

    def pairwise(self, estimate: Any, reference: Any) -> Tensor:
        """(B, M, ...), (B, S, ...) -> (B, M, S), what each estimate costs against each reference."""
        return self.distance(estimate.unsqueeze(2), reference.unsqueeze(1))

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """(..., C, F, N) or (..., C, T) twice, broadcast -> (...)."""
        raise AssertionError("a loss says how far apart the two are")


def pick(pairwise: Float[Tensor, "B M S"], order: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """pairwise: (B, M, S), order: (B, S) as `best_permutation` gives it -> (B, S), the costs of the chosen pairs."""
    return pairwise.gather(1, order.unsqueeze(1)).squeeze(1)


def domain_of(target: Target) -> str:
    """What a target, with arguments bound or not, is compared with."""
    return getattr(getattr(target, "func", target), "domain", "value without a domain")


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
