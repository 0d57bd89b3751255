"""L1 and mean squared error between masked magnitudes and a spectrogram target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from separate.losses.base import Loss
from separate.targets import Target

if TYPE_CHECKING:
    from separate.batch import Batch
    from separate.separator import Separation

DISTANCES = {"l1": lambda x: x.abs(), "mse": lambda x: x.square()}


class SpectralLoss(Loss):
    """Mean over bins of |mask |Y| - target| (l1) or its square (mse).

    A silent reference asks for silence; a silent mixture costs 0 whatever the mask, with zero gradient.
    """

    needs = "masks"
    domain = "spectrogram"

    def __init__(self, target: Target, distance: str = "l1", interchangeable: bool = False) -> None:
        super().__init__(target, interchangeable)
        if distance not in DISTANCES:
            raise ValueError(f"unknown distance {distance}; choose from {', '.join(DISTANCES)}")
        self.error = DISTANCES[distance]

    def pair(self, separation: Separation, batch: Batch) -> tuple[Tensor, Tensor]:
        assert separation.masks is not None
        estimate = separation.masks.float() * batch.spectrogram.abs().unsqueeze(1)
        return estimate, self.target(batch.source_spectrograms, batch.spectrogram)

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return self.error(estimate - reference).mean(dim=(-3, -2, -1))
