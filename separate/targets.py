"""Training targets: spectrogram approximations, masks and waveforms (MSA, PSA, tPSA; IBM, IRM, IAM, Wiener, PSM, cIRM).

A target maps the complex STFTs S_i of the sources (B, S, C, F, N) and Y of the mixture (B, C, F, N) to the reference
of a loss.  R = Y - sum_i S_i is the rest of the mixture.  The domain of a target determines the estimate that a loss
compares with it:
  spectrogram   mask |Y|; the target is real, (B, S, C, F, N)
  mask          the mask; the target is real, (B, S, C, F, N)
  complex_mask  the compressed complex mask; the target is complex, (B, S, C, F, N)
  waveform      the waveform; the target maps samples (B, S, C, T) and (B, C, T) to (B, S, C, T)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from separate.shapes import Complex, Float

TINY = 1e-12  # magnitude below which a bin of the mixture counts as silent
DOMAINS = ("spectrogram", "mask", "complex_mask", "waveform")


class Target(Protocol):
    """A pure function of (sources, mixture) with a domain, one of `DOMAINS`."""

    domain: str

    def __call__(self, sources: Tensor, mixture: Tensor) -> Tensor: ...


def target(domain: str) -> Callable[[Callable[..., Tensor]], Target]:
    """Decorate a function as a target of this domain; ValueError for an unknown domain."""
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain}; choose from {', '.join(DOMAINS)}")

    def decorate(function: Callable[..., Tensor]) -> Target:
        function.domain = domain  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return decorate


@target("spectrogram")
def msa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Magnitude spectrum approximation, |S_i| (Weninger et al., 2014)."""
    return sources.abs()


@target("spectrogram")
def psa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Phase-sensitive spectrum approximation, |S_i| cos(angle S_i - angle Y) (Erdogan et al., 2015, eq. 8).

    The component of S_i in phase with the mixture; it can be negative, and is 0 where the mixture is silent.
    """
    direction = mixture / mixture.abs().clamp_min(TINY)
    return (sources * direction.conj().unsqueeze(1)).real


@target("spectrogram")
def tpsa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Truncated phase-sensitive approximation: PSA clipped to [0, |Y|], the range of masks in [0, 1]."""
    return psa(sources, mixture).clamp_min(0).minimum(mixture.abs().unsqueeze(1))


@target("mask")
def ibm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Ideal binary mask: 1 where |S_i| is the largest of all |S_j| and |R| (Wang, 2005), else 0.

    Of equal sources the first gets the bin; a silent bin belongs to no source.
    """
    magnitude = _with_rest(sources, mixture)
    loudest, owner = magnitude.max(dim=1, keepdim=True)
    masks = torch.zeros_like(magnitude).scatter_(1, owner, (loudest > 0).to(magnitude.dtype))
    return masks[:, :-1]


@target("mask")
def irm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Ideal ratio mask, |S_i| / (sum_j |S_j| + |R|) (Erdogan et al., 2015, table 1); 0 in silent bins."""
    magnitude = _with_rest(sources, mixture)
    return (magnitude / magnitude.sum(dim=1, keepdim=True).clamp_min(TINY))[:, :-1]


@target("mask")
def wiener(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Wiener-like mask, |S_i|^2 / (sum_j |S_j|^2 + |R|^2) (Erdogan et al., 2015, table 1); 0 in silent bins."""
    power = _with_rest(sources, mixture).square()
    return (power / power.sum(dim=1, keepdim=True).clamp_min(TINY**2))[:, :-1]


@target("mask")
def iam(
    sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"], limit: float = 10.0
) -> Float[Tensor, "B S C F N"]:
    """Ideal amplitude mask, |S_i| / |Y|, at most `limit` (Wang, Narayanan and Wang, 2014, FFT-MASK, with limit 10).

    ValueError for a limit of 0 or less.
    """
    check_limit(limit)
    return (sources.abs() / mixture.abs().clamp_min(TINY).unsqueeze(1)).clamp_max(limit)


@target("mask")
def psm(
    sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"], limit: float = 10.0
) -> Float[Tensor, "B S C F N"]:
    """Phase-sensitive mask, |S_i| / |Y| cos(angle S_i - angle Y), in [-limit, limit] (Erdogan et al., 2015).

    ValueError for a limit of 0 or less.
    """
    check_limit(limit)
    return (psa(sources, mixture) / mixture.abs().clamp_min(TINY).unsqueeze(1)).clamp(-limit, limit)


@target("complex_mask")
def cirm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Complex[Tensor, "B S C F N"]:
    """Complex ideal ratio mask S_i / Y, compressed (Williamson et al., 2016, eq. 8 to 10); 0 where Y is silent."""
    power = mixture.abs().square().clamp_min(TINY**2)
    return compress(sources * (mixture.conj() / power).unsqueeze(1))


def compress(
    complex_masks: Complex[Tensor, "*B"], limit: float = 10.0, steepness: float = 0.1
) -> Complex[Tensor, "*B"]:
    """Compress real and imaginary part x of complex masks to K (1 - exp(-C x)) / (1 + exp(-C x)) = K tanh(C x / 2).

    K = limit, C = steepness (Williamson et al., 2016, eq. 9).
    """
    parts = torch.view_as_real(complex_masks)
    return torch.view_as_complex(limit * torch.tanh(steepness / 2 * parts))


@target("waveform")
def waveform(sources: Tensor, mixture: Tensor) -> Tensor:
    """The sources themselves, (B, S, C, T)."""
    return sources


TARGETS: dict[str, Target] = {
    function.__name__: function  # type: ignore[attr-defined]
    for function in (msa, psa, tpsa, ibm, irm, wiener, iam, psm, cirm, waveform)
}


def check_limit(limit: float) -> None:
    """ValueError unless the limit of a mask is above 0."""
    if not limit > 0:
        raise ValueError(f"limit={limit} must be above 0, e.g. limit=10")


def audible(mixture: Complex[Tensor, "B C F N"], level: float) -> Float[Tensor, "B F N"]:
    """1 in the bins at or above `level` dB (negative) re the loudest bin of the example, else 0.

    The powers of the channels are added.  A silent mixture has no audible bins.
    """
    power = mixture.abs().square().sum(dim=1)
    loudest = power.amax(dim=(1, 2), keepdim=True)
    return ((power >= loudest * 10 ** (level / 10)) & (loudest > 0)).to(power.dtype)


def _with_rest(sources: Tensor, mixture: Tensor) -> Tensor:
    """|S_i| and, last, |R|: (B, S + 1, C, F, N).  An |R| that is only rounding error becomes 0."""
    magnitude = sources.abs()
    rest = (mixture - sources.sum(dim=1)).abs()
    rest = rest * (rest > 1e-5 * magnitude.sum(dim=1))
    return torch.cat([magnitude, rest.unsqueeze(1)], dim=1)
