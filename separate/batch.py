"""One training step's signals, each transformed at most once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from separate.stft import STFT


@dataclass
class Batch:
    """mixture: (B, C, T); sources: (B, S, C, T), both float32; tracks: what each example was cut from.

    Where the sources are not known S is 0.  The spectrograms are computed where the batch lies, when first asked
    for, by the `stft` it was bound to.
    """

    mixture: Tensor
    sources: Tensor
    tracks: list[str] = field(default_factory=list)
    stft: STFT | None = None

    @classmethod
    def of_mixture(cls, mixture: Tensor, stft: STFT) -> Batch:
        """A mixture (B, C, T) alone."""
        return cls(mixture, mixture.new_empty(mixture.shape[0], 0, *mixture.shape[1:]), stft=stft)

    def to(self, device: torch.device, stft: STFT) -> Batch:
        """The same signals on `device`, bound to the transform of the separator that will see them."""
        mixture = self.mixture.to(device, non_blocking=True)
        return replace(self, mixture=mixture, sources=self.sources.to(device, non_blocking=True), stft=stft)

    def pin_memory(self) -> Batch:
        return replace(self, mixture=self.mixture.pin_memory(), sources=self.sources.pin_memory())

    @cached_property
    def spectrogram(self) -> Tensor:
        """STFT of the mixture, (B, C, F, N) complex."""
        return self._transform(self.mixture)

    @cached_property
    def source_spectrograms(self) -> Tensor:
        """STFT of each source, (B, S, C, F, N) complex."""
        return self._transform(self.sources)

    def _transform(self, waveform: Tensor) -> Tensor:
        assert self.stft is not None, "Batch.to(device, stft) binds the transform"
        with torch.autocast(waveform.device.type, enabled=False):
            return self.stft(waveform)
