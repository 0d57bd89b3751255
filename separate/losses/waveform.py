"""Losses of waveforms; the inverse STFT turns masks into waveforms, differentiably.

The channels of a source are concatenated to one long signal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from separate.evaluation.sdr import pairwise_si_sdr, si_sdr
from separate.losses.base import PairedLoss
from separate.models.layers import choose
from separate.shapes import Float
from separate.targets import Target

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation

QUIET = 1e-8  # mean square added under a logarithm: -80 dB re full scale
USUAL = 1e-2  # mean square of a mixture at a usual level, -20 dB re full scale
SILENT = 1e-6  # re the mean square of the mixture: a source at or below -60 dB counts as silent
INACTIVE = 1e-2  # re the mean square of the mixture: floor, -20 dB, of the error of a silent source

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda error, floor: error.abs().mean(-1),
    "mse": lambda error, floor: error.square().mean(-1),
    "log_mse": lambda error, floor: 10 * torch.log10(error.square().mean(-1) + floor + QUIET),
}


def silence_floor(reference: Float[Tensor, "B S T"], mixture: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    """The mean square to add to the error of a silent source; 0 for other sources.

    The logarithm of an error has an unbounded gradient near 0.  The error of a silent source therefore has a floor 20
    dB below the mixture (Wisdom et al., 2021, loss of inactive sources); a silent mixture counts as -20 dB re full
    scale.
    reference: (B, S, T); mixture: (B, T) -> (B, S)
    """
    energy, mixture_power = reference.square().mean(-1), mixture.square().mean(-1, keepdim=True)
    mixture_power = _usual_if_silent(mixture_power)
    return INACTIVE * mixture_power * (energy <= SILENT * mixture_power)


def _usual_if_silent(mixture_power: Tensor) -> Tensor:
    """Mean squares of mixtures, with the usual value for silent mixtures."""
    return torch.where(mixture_power > QUIET, mixture_power, USUAL)


class SampleLoss(PairedLoss):
    """A loss of two waveforms (..., C T).  Subclasses implement `distance(estimate, reference)`, broadcast -> (...)."""

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        return separation.estimates.flatten(-2), self.target(batch.sources, batch.mixture).flatten(-2)


class FlooredLoss(SampleLoss):
    """A loss of two waveforms (..., C T) and a `silence_floor` (...).  Subclasses implement `error`."""

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        estimate, reference = super().signals(separation, batch)
        return estimate, (reference, silence_floor(reference, batch.mixture.flatten(1)))

    def matched(self, estimate: Tensor, reference: tuple[Tensor, Tensor]) -> Tensor:
        return self.error(estimate, *reference)

    def pairwise(self, estimate: Tensor, reference: tuple[Tensor, Tensor]) -> Tensor:
        return self.error(estimate.unsqueeze(2), *(x.unsqueeze(1) for x in reference))

    def error(self, estimate: Tensor, reference: Tensor, floor: Tensor) -> Tensor:
        """(..., C T) twice and (...), broadcast -> (...)."""
        raise NotImplementedError("subclasses of FlooredLoss implement error(estimate, reference, floor)")


class WaveformLoss(FlooredLoss):
    """Mean absolute error (l1), mean squared error (mse), or the latter in dB (log_mse, Heitkaemper et al., 2020).

    A silent reference is compared like any other.  log_mse has a floor at -80 dB re full scale, and for a silent
    reference 20 dB below the mixture.
    """

    def __init__(
        self,
        target: Target,
        distance: str = "l1",
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target, interchangeable, source_weights, sources)
        self.measure = choose(distance, DISTANCES, "distance")

    def error(self, estimate: Tensor, reference: Tensor, floor: Tensor) -> Tensor:
        return self.measure(estimate - reference, floor)


class SISDRLoss(SampleLoss):
    """Negative SI-SDR in dB (Le Roux et al., 2019).  zero_mean: subtract the means first (SI-SNR, Luo et al., 2018).

    A silent reference or estimate costs about 69 dB, the floor of `si_sdr` in float32, with a finite gradient.
    Level and polarity of an estimate do not matter.
    """

    keeps_levels = False

    def __init__(
        self,
        target: Target,
        zero_mean: bool = False,
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target, interchangeable, source_weights, sources)
        self.zero_mean = zero_mean

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        estimate, reference = super().signals(separation, batch)
        if self.zero_mean:
            estimate = estimate - estimate.mean(-1, keepdim=True)
            reference = reference - reference.mean(-1, keepdim=True)
        return estimate, reference

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return -si_sdr(estimate, reference)

    def pairwise(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return -pairwise_si_sdr(estimate, reference)  # one matrix product for all pairs


def negative_snr(
    estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"], soft: float, floor: Float[Tensor, "*#B"]
) -> Float[Tensor, ...]:
    """10 log10((|s - e|^2 + soft |s|^2 + floor) / |s|^2) of (..., T) twice -> (...)"""
    error, energy = (reference - estimate).square().mean(-1), reference.square().mean(-1)
    return 10 * torch.log10((error + soft * energy + floor + QUIET) / (energy + QUIET))


def softness(threshold: float) -> float:
    """The energy of the error re the reference at an SNR of `threshold` dB."""
    return 10 ** (-threshold / 10)


class SNRLoss(FlooredLoss):
    """Negative SNR in dB, 10 log10((|s - e|^2 + t |s|^2) / |s|^2); the level of an estimate matters.

    threshold: SNR in dB at which the loss saturates, t = 10^(-threshold / 10) (Wisdom et al., 2020, eq. 3); None for
    t = 0.
    The loss for a silent reference is the level of the estimate above -80 dB re full scale, and at least that of an
    estimate 20 dB below the mixture.  With t = 0 a perfect estimate has minus the level of the reference above -80 dB.
    """

    def __init__(
        self,
        target: Target,
        threshold: float | None = 30.0,
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target, interchangeable, source_weights, sources)
        self.soft = 0.0 if threshold is None else softness(threshold)

    def error(self, estimate: Tensor, reference: Tensor, floor: Tensor) -> Tensor:
        return negative_snr(estimate, reference, self.soft, floor)


class SDSDRLoss(FlooredLoss):
    """Negative scale-dependent SDR in dB, 10 log10(|s - e|^2 / |a s|^2) with a = <e, s> / |s|^2 (Le Roux et al., 2019).

    The loss for a silent reference is the level of the estimate above -80 dB re full scale, and at least that of an
    estimate 20 dB below the mixture.  For an estimate orthogonal to its reference it is the level of the error above
    -80 dB.
    """

    def error(self, estimate: Tensor, reference: Tensor, floor: Tensor) -> Tensor:
        error, energy = (reference - estimate).square().mean(-1), reference.square().mean(-1)
        scaled = (estimate * reference).mean(-1).square() / (energy + QUIET)  # mean square of a s
        return 10 * torch.log10((error + floor + QUIET) / (scaled + QUIET))


class MultiResolutionSTFTLoss(SampleLoss):
    """Spectral convergence and L1 of log magnitudes, averaged over several STFTs (Yamamoto et al., 2020, eq. 3 to 6).

    ffts, hops, windows: in samples, one of each for every STFT (Hann windows).  Magnitudes below 1e-4 count as 1e-4.
    Spectral convergence is relative to the reference, or to a level 20 dB below the mixture if that is higher.  For a
    silent reference it is relative to the mixture, and magnitudes below -20 dB re the mixture count as silent, as in
    `silence_floor`, so that a silent source does not outweigh the others.
    The polarity of an estimate does not matter.
    """

    keeps_levels = False

    def __init__(
        self,
        target: Target,
        ffts: Sequence[int] = (1024, 2048, 512),
        hops: Sequence[int] = (120, 240, 50),
        windows: Sequence[int] = (600, 1200, 240),
        interchangeable: bool = False,
        source_weights: Mapping[str, float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(target, interchangeable, source_weights, sources)
        if not len(ffts) == len(hops) == len(windows) > 0:
            raise ValueError(
                f"ffts={list(ffts)}, hops={list(hops)}, windows={list(windows)} must be equally many, at least one"
            )
        for fft, hop, window in zip(ffts, hops, windows, strict=True):
            if not 1 <= hop <= window <= fft:
                raise ValueError(f"fft={fft}, hop={hop}, window={window} must satisfy 1 <= hop <= window <= fft")
        self.resolutions = list(zip(ffts, hops, windows, strict=True))

    def signals(self, separation: Separation, batch: Batch) -> tuple[list[Tensor], list[Reference]]:
        target = self.target(batch.sources, batch.mixture)
        silent = silence_floor(target.flatten(-2), batch.mixture.flatten(1)) > 0  # (B, S)
        mixture_power = _usual_if_silent(batch.mixture.square().mean((1, 2)))[:, None, None]  # (B, 1, 1)
        references = [
            Reference.of(magnitude, silent, mixture_power * window * 3 / 8)  # by Parseval's theorem
            for magnitude, (_, _, window) in zip(self.magnitudes(target), self.resolutions, strict=True)
        ]
        return self.magnitudes(separation.estimates), references

    def magnitudes(self, waveform: Tensor) -> list[Tensor]:
        """(B, S, C, T) -> (B, S, C, F, N) for each resolution."""
        flat = waveform.flatten(0, -2)
        magnitudes = []
        for fft, hop, window in self.resolutions:
            padded = flat if flat.shape[-1] > fft // 2 else _padded(flat, fft // 2 + 1)
            hann = torch.hann_window(window, device=flat.device, dtype=flat.dtype)
            power = torch.view_as_real(torch.stft(padded, fft, hop, window, hann, return_complex=True)).square().sum(-1)
            magnitudes.append(power.clamp_min(QUIET).sqrt().reshape(*waveform.shape[:-1], *power.shape[-2:]))
        return magnitudes

    def matched(self, estimate: list[Tensor], reference: list[Reference]) -> Tensor:
        return torch.stack([r.distance(e) for e, r in zip(estimate, reference, strict=True)]).mean(0)

    def pairwise(self, estimate: list[Tensor], reference: list[Reference]) -> Tensor:
        return self.matched([e.unsqueeze(2) for e in estimate], [r.for_pairs() for r in reference])


class Reference(NamedTuple):
    """The reference in one STFT.

    magnitude: (..., C, F, N); scale: (..., C), the denominator of the spectral convergence; floor: (..., C), the floor
    of the magnitudes.
    """

    magnitude: Tensor
    scale: Tensor
    floor: Tensor

    @classmethod
    def of(cls, magnitude: Tensor, silent: Tensor, power: Tensor) -> Reference:
        """magnitude: (B, S, C, F, N); silent: (B, S); power: (B, 1, 1), the mean power of a bin of the mixture."""
        energy = magnitude.square().sum((-2, -1))
        mixture_power = power * magnitude.shape[-2:].numel()
        scale = torch.where(silent.unsqueeze(-1), mixture_power, torch.maximum(energy, INACTIVE * mixture_power)).sqrt()
        floor = (INACTIVE * power * silent.unsqueeze(-1)).clamp_min(QUIET).sqrt().expand_as(scale)
        return cls(magnitude, scale, floor)

    def for_pairs(self) -> Reference:
        """The reference with shapes (B, 1, S, ...), to compare it with every estimate."""
        return Reference(*(x.unsqueeze(1) for x in self))

    def distance(self, estimate: Tensor) -> Tensor:
        """The loss of magnitudes (..., C, F, N), broadcast -> (...)."""
        error = (self.magnitude - estimate).square().sum((-2, -1)).clamp_min(QUIET**2).sqrt()
        floor = self.floor[..., None, None]
        logarithms = (torch.maximum(self.magnitude, floor).log() - torch.maximum(estimate, floor).log()).abs()
        return (error / self.scale + logarithms.mean((-2, -1))).mean(-1)


def _padded(waveform: Tensor, length: int) -> Tensor:
    """Zero-pad to `length`, the smallest one that the STFT can reflect at its ends."""
    return torch.nn.functional.pad(waveform, (0, length - waveform.shape[-1]))
