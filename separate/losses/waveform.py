"""Losses of waveforms; masks become waveforms through the differentiable inverse STFT.

The channels of a source are one long signal.
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
SILENT = 1e-6  # re the energy of the mixture: a source below -60 dB counts as silent
INACTIVE = 1e-2  # re the energy of the mixture: the floor, -20 dB, of the error of a silent source

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda error, floor: error.abs().mean(-1),
    "mse": lambda error, floor: error.square().mean(-1),
    "log_mse": lambda error, floor: 10 * torch.log10(error.square().mean(-1) + floor + QUIET),
}


def silence_floor(reference: Float[Tensor, "B S T"], mixture: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    """The mean square to add to the error of a silent source; 0 for other sources.

    The logarithm of an error has an unbounded gradient near 0.  The error of a silent source therefore has a floor 20
    dB below the mixture (Wisdom et al., 2021, the loss of inactive sources); a silent mixture counts as one at -20 dB.
    reference: (B, S, T); mixture: (B, T) -> (B, S)
    """
    energy, of_mixture = reference.square().mean(-1), mixture.square().mean(-1, keepdim=True)
    of_mixture = _usual_if_silent(of_mixture)
    return INACTIVE * of_mixture * (energy <= SILENT * of_mixture)


def _usual_if_silent(of_mixture: Tensor) -> Tensor:
    """Mean squares of mixtures; a silent mixture gets the usual level."""
    return torch.where(of_mixture > QUIET, of_mixture, USUAL)


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

    A silent reference is compared like any other.  log_mse has a floor at -80 dB, for a silent reference 20 dB below
    the mixture.
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
    """Negative SI-SDR in dB (Le Roux et al., 2019).  zero_mean: subtract the means first, SI-SNR (Luo et al., 2018).

    A silent reference or estimate costs about 69 dB, the floor of `si_sdr` in float32, with a finite gradient.
    Level and polarity of an estimate do not count.
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
    """The share of the reference in the error at an SNR of `threshold` dB."""
    return 10 ** (-threshold / 10)


class SNRLoss(FlooredLoss):
    """Negative SNR in dB, 10 log10((|s - e|^2 + t |s|^2) / |s|^2); levels count.

    threshold: SNR in dB at which the loss saturates, t = 10^(-threshold / 10) (Wisdom et al., 2020, eq. 3); None:
    never. A silent reference costs the level of the estimate above -80 dB; that level counts as at least 20 dB below
    the mixture.  A perfect estimate costs at most 80 dB less than the level of the reference.
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

    A silent reference costs the level of the estimate above -80 dB; that level counts as at least 20 dB below the
    mixture.  An estimate orthogonal to its reference costs the level of the error above -80 dB.
    """

    def error(self, estimate: Tensor, reference: Tensor, floor: Tensor) -> Tensor:
        error, energy = (reference - estimate).square().mean(-1), reference.square().mean(-1)
        scaled = (estimate * reference).mean(-1).square() / (energy + QUIET)  # mean square of a s
        return 10 * torch.log10((error + floor + QUIET) / (scaled + QUIET))


class MultiResolutionSTFTLoss(SampleLoss):
    """Spectral convergence and L1 of log magnitudes, mean over several STFTs (Yamamoto et al., 2020, eq. 3 to 6).

    ffts, hops, windows: samples, of each resolution (Hann windows).  Magnitudes below 1e-4 count as 1e-4.
    Spectral convergence is relative to the reference, or to a level 20 dB below the mixture if that is higher.  For a
    silent reference it is relative to the mixture, and magnitudes below -20 dB re the mixture count as silent, as in
    `silence_floor`, so that a silent source does not outweigh the others.
    The polarity of an estimate does not count.
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
            raise ValueError(f"ffts={list(ffts)}, hops={list(hops)}, windows={list(windows)} must be equally many")
        for fft, hop, window in zip(ffts, hops, windows, strict=True):
            if not 1 <= hop <= window <= fft:
                raise ValueError(
                    f"fft={fft}, hop={hop}, window={window}: no hop above its window, no window above its fft"
                )
        self.resolutions = list(zip(ffts, hops, windows, strict=True))

    def signals(self, separation: Separation, batch: Batch) -> tuple[list[Tensor], list[Reference]]:
        target = self.target(batch.sources, batch.mixture)
        silent = silence_floor(target.flatten(-2), batch.mixture.flatten(1)) > 0  # (B, S)
        of_mixture = _usual_if_silent(batch.mixture.square().mean((1, 2)))[:, None, None]  # (B, 1, 1)
        references = [
            Reference.of(magnitude, silent, of_mixture * window * 3 / 8)  # by Parseval's theorem
            for magnitude, (_, _, window) in zip(self.magnitudes(target), self.resolutions, strict=True)
        ]
        return self.magnitudes(separation.estimates), references

    def magnitudes(self, waveform: Tensor) -> list[Tensor]:
        """(B, S, C, T) -> (B, S, C, F, N) for each resolution."""
        flat = waveform.flatten(0, -2)
        found = []
        for fft, hop, window in self.resolutions:
            padded = flat if flat.shape[-1] > fft // 2 else _padded(flat, fft // 2 + 1)
            taper = torch.hann_window(window, device=flat.device, dtype=flat.dtype)
            power = (
                torch.view_as_real(torch.stft(padded, fft, hop, window, taper, return_complex=True)).square().sum(-1)
            )
            found.append(power.clamp_min(QUIET).sqrt().reshape(*waveform.shape[:-1], *power.shape[-2:]))
        return found

    def matched(self, estimate: list[Tensor], reference: list[Reference]) -> Tensor:
        return torch.stack([r.distance(e) for e, r in zip(estimate, reference, strict=True)]).mean(0)

    def pairwise(self, estimate: list[Tensor], reference: list[Reference]) -> Tensor:
        return self.matched([e.unsqueeze(2) for e in estimate], [r.beside_all() for r in reference])


class Reference(NamedTuple):
    """The reference in one resolution.

    magnitude: (..., C, F, N); scale: (..., C), the denominator of the spectral convergence; least: (..., C), the floor
    of the magnitudes.
    """

    magnitude: Tensor
    scale: Tensor
    least: Tensor

    @classmethod
    def of(cls, magnitude: Tensor, silent: Tensor, power: Tensor) -> Reference:
        """magnitude: (B, S, C, F, N); silent: (B, S); power: (B, 1, 1), the mean over the bins of the mixture."""
        energy = magnitude.square().sum((-2, -1))
        of_mixture = power * magnitude.shape[-2:].numel()
        scale = torch.where(silent.unsqueeze(-1), of_mixture, torch.maximum(energy, INACTIVE * of_mixture)).sqrt()
        least = (INACTIVE * power * silent.unsqueeze(-1)).clamp_min(QUIET).sqrt().expand_as(scale)
        return cls(magnitude, scale, least)

    def beside_all(self) -> Reference:
        """The reference with (B, S, ...) as (B, 1, S, ...), to pair it with all estimates."""
        return Reference(*(x.unsqueeze(1) for x in self))

    def distance(self, estimate: Tensor) -> Tensor:
        """The loss of magnitudes (..., C, F, N), broadcast -> (...)."""
        error = (self.magnitude - estimate).square().sum((-2, -1)).clamp_min(QUIET**2).sqrt()
        least = self.least[..., None, None]
        logarithms = (torch.maximum(self.magnitude, least).log() - torch.maximum(estimate, least).log()).abs()
        return (error / self.scale + logarithms.mean((-2, -1))).mean(-1)


def _padded(waveform: Tensor, length: int) -> Tensor:
    """Zero-pad to the least length that an STFT can reflect at its ends."""
    return torch.nn.functional.pad(waveform, (0, length - waveform.shape[-1]))
