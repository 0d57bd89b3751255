"""The contract of a loss: what it needs of a network, which targets it takes, and the permutation of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from separate.losses.permutation import best_permutation

if TYPE_CHECKING:
    from separate.batch import Batch
    from separate.separator import Separation
    from separate.targets import Target


class Loss(nn.Module):
    """A scalar to minimise.  A subclass says how each estimate fails each reference; this class pairs them.

    needs: what the network must provide (`masks`, `embeddings`) or `estimates`, which every network gives.
    domain: the signals that its target must be made of, `spectrogram` or `waveform`.
    interchangeable: pair estimates and references the best way for each example (Yu et al., 2017, PIT).
    """

    needs: str = "estimates"
    domain: str = "waveform"

    def __init__(self, target: Target, interchangeable: bool = False) -> None:
        super().__init__()
        self.target = target
        self.interchangeable = interchangeable

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over examples and sources, and the named parts that it is the sum of (none here)."""
        estimate, reference = self.pair(separation, batch)
        if self.interchangeable:
            pairwise = self.distance(estimate.unsqueeze(2), reference.unsqueeze(1))  # (B, S estimates, S references)
            order = best_permutation(pairwise.detach())
            return pairwise.gather(1, order.unsqueeze(1)).mean(), {}
        return self.distance(estimate, reference).mean(), {}

    def pair(self, separation: Separation, batch: Batch) -> tuple[Tensor, Tensor]:
        """(estimate, reference), each (B, S, C, ...)."""
        raise AssertionError("a loss says what it compares")

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """(..., C, F, N) or (..., C, T) twice, broadcast -> (...)."""
        raise AssertionError("a loss says how far apart the two are")
