"""The input of spectrogram networks: magnitudes, scaled and normalised, optionally in mel bands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import choose, decibels
from separate.shapes import Complex, Float
from separate.stft import mel_filterbank

SCALES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linear": lambda magnitude, floor: magnitude,
    "db": decibels,
    "power": lambda magnitude, floor: magnitude.square(),
}


@dataclass(frozen=True)
class RepresentationOptions:
    """The input options of all spectrogram networks.

    scale: linear, db or power; floor: lower limit of the magnitudes with scale=db, in dB re 1.
    normalisation, of each channel and frequency separately unless stated otherwise:
      batch     over batch and frames (Ioffe and Szegedy, 2015)
      instance  over the frames of each example
      group     over the frames and frequencies of each group (Wu and He, 2018)
      layer     over channels and frequencies of each frame: causal
      learnable shift and scale of each frequency, initialised like whiten and then trained
      whiten    mean and standard deviation of each frequency in the training set, measured once before training
      peak      divided by the largest magnitude of each example: linear magnitudes lie in [0, 1]
      none      unchanged
    groups: number of groups of neighbouring frequencies, for normalisation=group; None: one per channel.
    mels: number of mel bands into which the bins are summed, None for no bands; mel bands need the sample_rate in Hz.
    """

    scale: str = "db"
    floor: float = -80.0
    normalisation: str = "batch"
    groups: int | None = None
    mels: int | None = None
    sample_rate: float | None = None


class Representation(nn.Module):
    """Turn a complex spectrogram of F bins into real features of M bands, and masks of bands into masks of bins.

    M = F without mels.  ValueError for options that do not fit the number of channels and bins.
    """

    mel: Tensor | None

    def __init__(self, channels: int, bins: int, options: RepresentationOptions = RepresentationOptions()) -> None:
        super().__init__()
        self.bins = bins
        self.scale = choose(options.scale, SCALES, "representation")
        self.floor = options.floor
        mels, groups = options.mels, options.groups
        if mels is None:
            self.bands = bins
            self.register_buffer("mel", None)
        else:
            if options.sample_rate is None:
                raise ValueError(f"mels={mels} needs the sample rate; set sample_rate, in Hz")
            self.bands = mels
            self.register_buffer("mel", mel_filterbank(bins, options.sample_rate, mels), persistent=False)
        normalisation = choose(options.normalisation, NORMALISATIONS, "normalisation")
        if groups is not None and not 1 <= groups <= channels * self.bands:
            raise ValueError(f"groups={groups} must lie between 1 and {channels * self.bands}, channels x frequencies")
        self.normalise: Any = normalisation(channels, self.bands, groups or channels)

    def forward(
        self, spectrogram: Complex[Tensor, "B C F N"], silence: int = 0
    ) -> Float[Tensor, "B C {self.bands} N+{silence}"]:
        """silence: number of silent frames to append; the statistics of the normalisation leave them out."""
        features = self.scaled(nn.functional.pad(spectrogram, (0, silence)) if silence else spectrogram)
        limit = {"frames": spectrogram.shape[-1]} if isinstance(self.normalise, ExampleNormalisation) else {}
        normalised: Tensor = self.normalise(features, **limit)
        return normalised

    def observe(self, spectrogram: Complex[Tensor, "B C F N"]) -> None:
        """Add a batch of the training set to the statistics for normalisation=learnable and whiten, see `observers`."""
        self.normalise.observe(self.scaled(spectrogram[:, :, : self.bins]))

    def use_statistics(self) -> None:
        """Initialise shift and scale from the observed statistics."""
        self.normalise.use_statistics()

    def scaled(self, spectrogram: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B C _ N"]:
        """The features before normalisation."""
        magnitude = spectrogram.abs()
        if self.mel is not None:
            magnitude = self.mel @ magnitude
        return self.scale(magnitude, self.floor)

    def to_bins(self, masks: Float[Tensor, "*B M N"]) -> Float[Tensor, "*B _ N"]:
        """Masks of bands to masks of bins: the mean over the bands of a bin, weighted as in the mel filterbank."""
        return masks if self.mel is None else self.mel.T @ masks


class BatchNormalisation(nn.BatchNorm1d):
    """Standardise each channel and frequency over batch and frames; in evaluation with the running statistics."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__(channels * bands)

    def forward(self, features: Float[Tensor, "B C M N"]) -> Float[Tensor, "B C M N"]:
        normal = super().forward(rearrange(features, "b c f n -> b (c f) n"))
        return rearrange(normal, "b (c f) n -> b c f n", c=features.shape[1])


class ExampleNormalisation(nn.Module):
    """Base class of normalisations by the statistics of each example, over its first `frames` frames or, None, all."""


def standardised(features: Float[Tensor, "*B N"], frames: int | None, over: tuple[int, ...]) -> Float[Tensor, "*B N"]:
    """Subtract the mean of the first `frames` frames over the dimensions `over`; divide by their standard deviation."""
    variance, mean = torch.var_mean(features[..., :frames], dim=over, keepdim=True, correction=0)
    return (features - mean) * torch.rsqrt(variance + 1e-5)


class InstanceNormalisation(ExampleNormalisation):
    """Standardise each channel and frequency over the frames, then apply a learned scale and shift."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, bands, 1))
        self.bias = nn.Parameter(torch.zeros(channels, bands, 1))

    def forward(self, features: Float[Tensor, "B C M N"], frames: int | None = None) -> Float[Tensor, "B C M N"]:
        return standardised(features, frames, (-1,)) * self.weight + self.bias


class GroupNormalisation(ExampleNormalisation):
    """Standardise each group of neighbouring frequencies over the group and all frames, then scale and shift each row.

    The channels x bands rows are divided into `groups` of equal size, or of two sizes that differ by one row.  Scale
    and shift are learned.
    """

    def __init__(self, channels: int, bands: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels, bands, 1))
        self.bias = nn.Parameter(torch.zeros(channels, bands, 1))

    def forward(self, features: Float[Tensor, "B C M N"], frames: int | None = None) -> Float[Tensor, "B C M N"]:
        rows = rearrange(features, "b c f n -> b (c f) n")
        parts = [standardised(part, frames, (1, 2)) for part in rows.tensor_split(self.groups, dim=1)]
        return torch.cat(parts, dim=1).reshape(features.shape) * self.weight + self.bias


class PeakNormalisation(ExampleNormalisation):
    """Divide each example by its largest absolute feature over channels, frequencies and frames; silence stays 0."""

    def forward(self, features: Float[Tensor, "B C M N"], frames: int | None = None) -> Float[Tensor, "B C M N"]:
        return features / features[..., :frames].abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)


class LayerNormalisation(nn.LayerNorm):
    """Standardise each frame over channels and frequencies, then apply a learned scale and shift."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__([channels, bands])

    def forward(self, features: Float[Tensor, "B C M N"]) -> Float[Tensor, "B C M N"]:
        return rearrange(super().forward(rearrange(features, "b c f n -> b n c f")), "b n c f -> b c f n")


class Standardisation(nn.Module):
    """(x + shift) scale for each frequency, the same in all channels, with the statistics of the training set.

    Before training, `observe` takes the set batch by batch, in float64 (Chan et al., 1983); `use_statistics` then sets
    shift to the negative mean and scale to the inverse standard deviation.  Until then the features are unchanged.
    trained: shift and scale are parameters that training changes (Stöter et al., 2019); otherwise they are constant.
    known: the statistics come from a checkpoint, so that they need not be measured.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, bands: int, trained: bool) -> None:
        super().__init__()
        for name, value in (("shift", torch.zeros(bands)), ("scale", torch.ones(bands))):
            if trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.known = False  # whether the statistics came with the weights
        self.bands = bands
        self.forget()

    def forget(self) -> None:
        """Start the statistics anew."""
        self.count = 0
        self.mean = torch.zeros(self.bands, dtype=torch.float64)
        self.squares = torch.zeros(self.bands, dtype=torch.float64)  # sum of squared deviations from the mean

    def forward(self, features: Float[Tensor, "B C M N"]) -> Float[Tensor, "B C M N"]:
        return (features + self.shift[:, None]) * self.scale[:, None]

    @torch.no_grad()
    def observe(self, features: Float[Tensor, "B C M N"]) -> None:
        """Add features before normalisation to the statistics."""
        values = rearrange(features, "b c f n -> f (b c n)").cpu().double()
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        self.merge(values.shape[1], mean, values.shape[1] * variance)

    def merge(self, count: int, mean: Float[Tensor, " M"], squares: Float[Tensor, " M"]) -> None:
        """Add the statistics of `count` more values.  squares: the sum of their squared deviations from their mean."""
        old = self.count
        self.count = old + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / self.count)
        self.squares = self.squares + squares + difference.square() * (old * count / self.count)

    @torch.no_grad()
    def use_statistics(self) -> None:
        """Set shift and scale.  To limit the scale, a standard deviation is at least 1e-4 of the largest one."""
        deviation = (self.squares / max(self.count, 1)).sqrt()
        deviation = deviation.clamp_min(max(1e-4 * deviation.max().item(), 1e-12))
        self.shift.copy_(-self.mean)
        self.scale.copy_(1 / deviation)


NORMALISATIONS: dict[str, Callable[[int, int, int], nn.Module]] = {  # of channels, bands, groups
    "batch": lambda channels, bands, groups: BatchNormalisation(channels, bands),
    "instance": lambda channels, bands, groups: InstanceNormalisation(channels, bands),
    "group": GroupNormalisation,
    "layer": lambda channels, bands, groups: LayerNormalisation(channels, bands),
    "learnable": lambda channels, bands, groups: Standardisation(bands, trained=True),
    "whiten": lambda channels, bands, groups: Standardisation(bands, trained=False),
    "peak": lambda channels, bands, groups: PeakNormalisation(),
    "none": lambda channels, bands, groups: nn.Identity(),
}


def observers(network: nn.Module) -> list[Representation]:
    """The representations in a network that need the statistics of the training set before training."""
    parts = (part for part in network.modules() if isinstance(part, Representation))
    return [part for part in parts if isinstance(part.normalise, Standardisation) and not part.normalise.known]
