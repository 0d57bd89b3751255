"""A batch: mixture and sources, whose STFTs are computed at most once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from separate.shapes import Complex, Float, Inexact

if TYPE_CHECKING:
    from separate.stft import STFT


class Batch:
    """The signals of one step, the input of networks and losses.

    mixture: (B, C, T) and sources: (B, S, C, T), float32; S is 0 if the sources are unknown.  tracks: the name of the
    track of each example.  `stft` computes spectrograms on the device of the batch at their first use, and the samples
    of a batch of spectrograms likewise.  additive: whether the mixture is the sum of the sources.
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
        """A batch of a mixture (B, C, T) without sources."""
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
        """A batch of spectrograms of `frames` samples.  mixture: (B, C, F, N), sources: (B, S, C, F, N), complex."""
        batch = cls.__new__(cls)
        batch.spectrogram, batch.source_spectrograms = mixture, sources
        batch.tracks, batch.stft, batch.additive, batch.frames = list(tracks), stft, False, frames
        return batch

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.mixture if "mixture" in vars(self) else self.spectrogram)

    def split(self, parts: int) -> list[Batch]:
        """The examples in up to `parts` batches of about equal size, in order."""
        if parts == 1:
            return [self]
        groups = torch.arange(len(self)).tensor_split(min(parts, len(self)))
        return [self.part(int(numbers[0]), int(numbers[-1]) + 1) for numbers in groups]

    def part(self, first: int, last: int) -> Batch:
        """The examples from `first` to the one before `last`."""
        part = copy.copy(self)
        part.tracks = self.tracks[first:last]
        vars(part).update({name: x[first:last] for name, x in vars(self).items() if isinstance(x, Tensor)})
        return part

    @cached_property
    def mixture(self) -> Float[Tensor, "B C T"]:
        return self._inverse(self.spectrogram)

    @cached_property
    def sources(self) -> Float[Tensor, "B S C T"]:
        return self._inverse(self.source_spectrograms)

    @cached_property
    def spectrogram(self) -> Complex[Tensor, "B C F N"]:
        """STFT of the mixture, (B, C, F, N) complex; the sum of the STFTs of the sources if these are known."""
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
        assert self.stft is not None, "RawBatch.to(device, stft) binds the transform"
        return self.stft


def total(sources: Inexact[Tensor, "B S ..."]) -> Inexact[Tensor, "B ..."]:
    """The sum over S of (B, S, ...), added in order so that its rounding is reproducible."""
    found = sources[:, 0]
    for number in range(1, sources.shape[1]):
        found = found + sources[:, number]
    return found
