"""Losses on samples, through the differentiable inverse STFT where the network gives masks.

The channels of a source are taken together, as one long signal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from separate.evaluation.sdr import pairwise_si_sdr, si_sdr
from separate.losses.base import PairedLoss
from separate.models.layers import choose
from separate.targets import Target

if TYPE_CHECKING:
    from separate.batch import Batch
    from separate.separator import Separation

QUIET = 1e-8  # mean square that is added where a logarithm is taken: -80 dB re full scale
QUIETEST = 1e-2  # of the mixture's energy: a reference 20 dB below it, the least that a spectral error is relative to

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda error: error.abs().mean(-1),
    "mse": lambda error: error.square().mean(-1),
    "log_mse": lambda error: 10 * torch.log10(error.square().mean(-1) + QUIET),
}


class SampleLoss(PairedLoss):
    """What a subclass's `distance` says of two signals (..., C T)."""

    def signals(self, separation: Separation, batch: Batch) -> tuple[Any, Any]:
        return separation.estimates.flatten(-2), self.target(batch.sources, batch.mixture).flatten(-2)


class WaveformLoss(SampleLoss):
    """Mean over samples of the error (l1), of its square (mse), or that in dB (log_mse, Heitkaemper et al., 2020).

    A silent reference asks for silence; log_mse has its floor at -80 dB.
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
        self.error = choose(distance, DISTANCES, "distance")

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return self.error(estimate - reference)


class SISDRLoss(SampleLoss):
    """Negative SI-SDR in dB (Le Roux et al., 2019); zero_mean: of signals less their means, SI-SNR (Luo et al., 2018).

    A silent reference or estimate costs about 69 dB, the floor of `si_sdr` in float32, with a finite gradient.
    Neither level nor polarity of an estimate counts.
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


def negative_snr(estimate: Tensor, reference: Tensor, soft: float) -> Tensor:
    """10 log10((|s - e|^2 + soft |s|^2) / |s|^2) of (..., T) twice -> (...)"""
    error, energy = (reference - estimate).square().mean(-1), reference.square().mean(-1)
    return 10 * torch.log10((error + soft * energy + QUIET) / (energy + QUIET))


def softness(threshold: float) -> float:
    """The share of the reference that stays as error at a threshold in dB of SNR."""
    return 10 ** (-threshold / 10)


class SNRLoss(SampleLoss):
    """Negative SNR in dB, 10 log10((|s - e|^2 + t |s|^2) / |s|^2), so that levels count.

    threshold: dB, the SNR beyond which little is gained, t = 10^(-threshold / 10) (Wisdom et al., 2020, eq. 3); None
    has none.  A silent reference costs the level of the estimate above -80 dB, a perfect estimate at most 80 dB less
    than the reference's level.
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

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return negative_snr(estimate, reference, self.soft)


class SDSDRLoss(SampleLoss):
    """Negative scale-dependent SDR in dB, 10 log10(|s - e|^2 / |a s|^2) with a = <e, s> / |s|^2 (Le Roux et al., 2019).

    A silent reference costs the level of the estimate above -80 dB; an estimate orthogonal to its reference costs
    the level of the error above -80 dB.
    """

    def distance(self, estimate: Tensor, reference: Tensor) -> Tensor:
        error, energy = (reference - estimate).square().mean(-1), reference.square().mean(-1)
        scaled = (estimate * reference).mean(-1).square() / (energy + QUIET)  # mean square of a s
        return 10 * torch.log10((error + QUIET) / (scaled + QUIET))


class MultiResolutionSTFTLoss(SampleLoss):
    """Spectral convergence and L1 of log magnitudes, mean over several STFTs (Yamamoto et al., 2020, eq. 3 to 6).

    ffts, hops, windows: samples, of each resolution (Hann windows).  Magnitudes below 1e-4 count as that.
    The convergence is the error relative to the reference; for a reference more than 20 dB below its mixture it is
    relative to that level, so that a silent reference asks for silence at the cost of a quiet one.  In a silent
    mixture only the log magnitudes count.  The polarity of an estimate does not count.
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

    def signals(self, separation: Separation, batch: Batch) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """The estimates' magnitudes; those of the references, each with what its error is relative to, (B, S, C)."""
        references = self.magnitudes(self.target(batch.sources, batch.mixture))
        energy = batch.mixture.square().sum(-1).mean(-1)[:, None, None]  # (B, 1, 1)
        scales = []
        for reference, (fft, hop, window) in zip(references, self.resolutions, strict=True):
            # Parseval: what the STFT makes of the mixture's energy, in bins of positive frequency
            of_mixture = energy * fft / 2 * (3 / 8 * window / hop)
            quiet = torch.maximum(reference.square().sum((-2, -1)), QUIETEST * of_mixture).sqrt()
            scales.append(quiet.masked_fill(of_mixture <= QUIET * reference[0, 0, 0].numel(), torch.inf))
        return self.magnitudes(separation.estimates), list(zip(references, scales, strict=True))

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

    def matched(self, estimate: list[Tensor], reference: list[tuple[Tensor, Tensor]]) -> Tensor:
        costs = [_spectral_distance(e, *r) for e, r in zip(estimate, reference, strict=True)]
        return torch.stack(costs).mean(0)

    def pairwise(self, estimate: list[Tensor], reference: list[tuple[Tensor, Tensor]]) -> Tensor:
        references = [(magnitude.unsqueeze(1), scale.unsqueeze(1)) for magnitude, scale in reference]
        return self.matched([e.unsqueeze(2) for e in estimate], references)


def _spectral_distance(estimate: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
    """Magnitudes (..., C, F, N) twice, broadcast -> (...).  scale: (..., C), what the error is relative to."""
    error = (reference - estimate).square().sum((-2, -1)).clamp_min(QUIET**2).sqrt()
    logarithms = (reference.log() - estimate.log()).abs().mean((-2, -1))
    return (error / scale + logarithms).mean(-1)


def _padded(waveform: Tensor, length: int) -> Tensor:
    """Zeros up to the length that an STFT can reflect at its ends."""
    return torch.nn.functional.pad(waveform, (0, length - waveform.shape[-1]))
