"""L1 and mean squared error of masks or masked magnitudes against a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from separate.losses.base import PairedLoss
from separate.models.layers import choose
from separate.targets import Target, compress

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"l1": lambda x: x.abs(), "mse": lambda x: x.square()}


class SpectralLoss(PairedLoss):
    """Mean over bins of |a - b| (l1) or its square (mse), with the target b and an estimate a by its domain.

    spectrogram: a is mask |Y| (signal approximation).
    mask: a is the mask (mask approximation); bins in which the mixture is silent do not count.
    complex_mask: a holds the real and imaginary parts of the compressed complex mask, with the same exception.
    A silent reference is compared like any other; a silent mixture costs 0 with zero gradient.
    """

    domains = ("spectrogram", "mask", "complex_mask")

    def __init__(
        self,
        target: Target,
        distance: str = "l1",
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target, interchangeable, source_weights, sources)
        self.error = choose(distance, DISTANCES, "distance")
        self.needs = ("complex_masks",) if self.domain == "complex_mask" else ("masks",)

    def signals(self, separation: Separation, batch: Batch) -> tuple[Tensor, Tensor]:
        masks, mixture = separation.masks, batch.spectrogram
        assert masks is not None
        target = self.target(batch.source_spectrograms, mixture)
        if self.domain == "spectrogram":
            return masks.float() * mixture.abs().unsqueeze(1), target
        not_silent = (mixture.abs() > 0).unsqueeze(1)
        if self.domain == "mask":
            return masks.float() * not_silent, target * not_silent
        parts = [torch.view_as_real(x * not_silent).movedim(-1, 2) for x in (compress(masks), target)]
        return parts[0].flatten(2, 3), parts[1].flatten(2, 3)  # (B, S, 2 C, F, N)

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return self.error(estimate - reference).mean(dim=(-3, -2, -1))
