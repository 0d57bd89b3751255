"""One training step's signals, each transformed at most once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from separate.shapes import Complex, Float, Inexact

if TYPE_CHECKING:
    from separate.stft import STFT


class Batch:
    """mixture: (B, C, T); sources: (B, S, C, T), both float32; tracks: what each example was cut from.

    Where the sources are not known S is 0.  The spectrograms are computed where the batch lies, when first asked
    for, by the `stft` it was bound to; a batch of spectrograms computes its samples so.
    additive: the mixture is the sum of the sources.
    """

    def __init__(
        self,
        mixture: Float[Tensor, "B C T"],
        sources: Float[Tensor, "B S C T"],
        tracks: Sequence[str] = (),
        stft: STFT | None = None,
        additive: bool = False,
    ) -> None:
        self.mixture = mixture
        self.sources = sources
        self.tracks = list(tracks)
        self.stft = stft
        self.additive = additive
        self.frames = mixture.shape[-1]

    @classmethod
    def of_mixture(cls, mixture: Float[Tensor, "B C T"], stft: STFT) -> Batch:
        """A mixture (B, C, T) alone."""
        return cls(mixture, mixture.new_empty(mixture.shape[0], 0, *mixture.shape[1:]), stft=stft)

    @classmethod
    def of_spectrograms(
        cls,
        mixture: Complex[Tensor, "B C F N"],
        sources: Complex[Tensor, "B S C F N"],
        frames: int,
        tracks: Sequence[str],
        stft: STFT,
    ) -> Batch:
        """mixture: (B, C, F, N), sources: (B, S, C, F, N), complex, of `frames` samples."""
        batch = cls.__new__(cls)
        batch.spectrogram, batch.source_spectrograms = mixture, sources
        batch.tracks, batch.stft, batch.additive, batch.frames = list(tracks), stft, False, frames
        return batch

    @cached_property
    def mixture(self) -> Float[Tensor, "B C T"]:
        return self._inverse(self.spectrogram)

    @cached_property
    def sources(self) -> Float[Tensor, "B S C T"]:
        return self._inverse(self.source_spectrograms)

    @cached_property
    def spectrogram(self) -> Complex[Tensor, "B C F N"]:
        """STFT of the mixture, (B, C, F, N) complex; a sum where those of the sources are there already."""
        if self.additive and "source_spectrograms" in vars(self):
            return total(self.source_spectrograms)
        return self._transform(self.mixture)

    @cached_property
    def source_spectrograms(self) -> Complex[Tensor, "B S C F N"]:
        """STFT of each source, (B, S, C, F, N) complex."""
        return self._transform(self.sources)

    def _transform(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            return self._bound(waveform)

    def _inverse(self, spectrogram: Tensor) -> Tensor:
        with torch.autocast(spectrogram.device.type, enabled=False):
            return self._bound.inverse(spectrogram, self.frames)

    @property
    def _bound(self) -> STFT:
        assert self.stft is not None, "Drawn.to(device, stft) binds the transform"
        return self.stft


def total(sources: Inexact[Tensor, "B S ..."]) -> Inexact[Tensor, "B ..."]:
    """The sum over S of (B, S, ...), one after the other: the order decides the last bit."""
    found = sources[:, 0]
    for number in range(1, sources.shape[1]):
        found = found + sources[:, number]
    return found
