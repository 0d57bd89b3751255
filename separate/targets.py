"""What the estimate or the mask of each source should have been: MSA, PSA, tPSA, IBM, IRM, IAM, Wiener, PSM, cIRM.

With complex STFTs S_i of the sources (B, S, C, F, N), Y of the mixture (B, C, F, N) and R = Y - sum_i S_i, what the
sources leave of it, a target maps (sources, mixture) to what is compared.  Its domain says with what:
  spectrogram   real (B, S, C, F, N), with mask |Y|
  mask          real (B, S, C, F, N), with the mask itself
  complex_mask  complex (B, S, C, F, N), with the compressed complex mask
  waveform      maps samples (B, S, C, T), (B, C, T) to samples (B, S, C, T), with the estimates
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from separate.shapes import Complex, Float

TINY = 1e-12  # magnitude below which a bin of the mixture counts as silent


class Target(Protocol):
    """A pure function of (sources, mixture); `domain` says what it is compared with."""

    domain: str

    def __call__(self, sources: Tensor, mixture: Tensor) -> Tensor: ...


def _of(domain: str) -> Callable[[Callable[..., Tensor]], Target]:
    def mark(function: Callable[..., Tensor]) -> Target:
        function.domain = domain  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return mark


@_of("spectrogram")
def msa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Magnitude spectrum approximation, |S_i| (Weninger et al., 2014)."""
    return sources.abs()


@_of("spectrogram")
def psa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Phase-sensitive spectrum approximation, |S_i| cos(angle S_i - angle Y) (Erdogan et al., 2015, eq. 8).

    It is the part of S_i in phase with the mixture, so it can be negative; 0 where the mixture is silent.
    """
    direction = mixture / mixture.abs().clamp_min(TINY)
    return (sources * direction.conj().unsqueeze(1)).real


@_of("spectrogram")
def tpsa(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Truncated phase-sensitive approximation, PSA clipped to [0, |Y|], which a mask in [0, 1] can reach."""
    return psa(sources, mixture).clamp_min(0).minimum(mixture.abs().unsqueeze(1))


@_of("mask")
def ibm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Ideal binary mask: 1 where |S_i| is the largest of all |S_j| and |R| (Wang, 2005), the first of equal ones.

    A bin in which nothing sounds belongs to no source.
    """
    magnitude = _with_rest(sources, mixture)
    loudest, owner = magnitude.max(dim=1, keepdim=True)
    masks = torch.zeros_like(magnitude).scatter_(1, owner, (loudest > 0).to(magnitude.dtype))
    return masks[:, :-1]


@_of("mask")
def irm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Ideal ratio mask, |S_i| / (sum_j |S_j| + |R|) (Erdogan et al., 2015, table 1); 0 where nothing sounds."""
    magnitude = _with_rest(sources, mixture)
    return (magnitude / magnitude.sum(dim=1, keepdim=True).clamp_min(TINY))[:, :-1]


@_of("mask")
def wiener(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B S C F N"]:
    """Wiener-like mask, |S_i|^2 / (sum_j |S_j|^2 + |R|^2) (Erdogan et al., 2015, table 1); 0 where nothing sounds."""
    power = _with_rest(sources, mixture).square()
    return (power / power.sum(dim=1, keepdim=True).clamp_min(TINY**2))[:, :-1]


@_of("mask")
def iam(
    sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"], limit: float = 10.0
) -> Float[Tensor, "B S C F N"]:
    """Ideal amplitude mask, |S_i| / |Y|, at most `limit` (Wang, Narayanan and Wang, 2014: FFT-MASK, 10)."""
    check_limit(limit)
    return (sources.abs() / mixture.abs().clamp_min(TINY).unsqueeze(1)).clamp_max(limit)


@_of("mask")
def psm(
    sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"], limit: float = 10.0
) -> Float[Tensor, "B S C F N"]:
    """Phase-sensitive mask, |S_i| / |Y| cos(angle S_i - angle Y), in [-limit, limit] (Erdogan et al., 2015)."""
    check_limit(limit)
    return (psa(sources, mixture) / mixture.abs().clamp_min(TINY).unsqueeze(1)).clamp(-limit, limit)


@_of("complex_mask")
def cirm(sources: Complex[Tensor, "B S C F N"], mixture: Complex[Tensor, "B C F N"]) -> Complex[Tensor, "B S C F N"]:
    """Complex ideal ratio mask S_i / Y, compressed (Williamson et al., 2016, eq. 8 to 10); 0 where Y is silent."""
    power = mixture.abs().square().clamp_min(TINY**2)
    return compress(sources * (mixture.conj() / power).unsqueeze(1))


def compress(
    complex_masks: Complex[Tensor, "*B"], limit: float = 10.0, steepness: float = 0.1
) -> Complex[Tensor, "*B"]:
    """Real and imaginary part x of a complex mask to K (1 - exp(-C x)) / (1 + exp(-C x)) = K tanh(C x / 2).

    K = limit and C = steepness (Williamson et al., 2016, eq. 9).
    """
    parts = torch.view_as_real(complex_masks)
    return torch.view_as_complex(limit * torch.tanh(steepness / 2 * parts))


@_of("waveform")
def waveform(sources: Tensor, mixture: Tensor) -> Tensor:
    """The sources themselves, (B, S, C, T)."""
    return sources


TARGETS: dict[str, Target] = {
    "msa": msa,
    "psa": psa,
    "tpsa": tpsa,
    "ibm": ibm,
    "irm": irm,
    "wiener": wiener,
    "iam": iam,
    "psm": psm,
    "cirm": cirm,
    "waveform": waveform,
}


def check_limit(limit: float) -> None:
    """ValueError for a largest mask that is not above 0."""
    if not limit > 0:
        raise ValueError(f"limit={limit} must be above 0, e.g. limit=10")


def audible(mixture: Complex[Tensor, "B C F N"], level: float) -> Float[Tensor, "B F N"]:
    """1 in the bins within `level` dB (negative) of each example's loudest, else 0.

    Powers of the channels are added; in a silent mixture all bins are 0.
    """
    power = mixture.abs().square().sum(dim=1)
    loudest = power.amax(dim=(1, 2), keepdim=True)
    return ((power >= loudest * 10 ** (level / 10)) & (loudest > 0)).to(power.dtype)


def _with_rest(sources: Tensor, mixture: Tensor) -> Tensor:
    """|S_i| and, last, |R|: (B, S + 1, C, F, N).  Where the sources are the whole mixture |R| is only rounding: 0."""
    magnitude = sources.abs()
    rest = (mixture - sources.sum(dim=1)).abs()
    rest = rest * (rest > 1e-5 * magnitude.sum(dim=1))
    return torch.cat([magnitude, rest.unsqueeze(1)], dim=1)
