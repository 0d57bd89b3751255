"""MSA, PSA, tPSA and waveform: what the estimate of each source should have been.

A spectrogram target maps (sources, mixture) with complex STFTs S_i (B, S, C, F, N) and Y (B, C, F, N) to the
real value (B, S, C, F, N) that `mask x |Y|` is compared with.  A waveform target maps samples to samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Target(Protocol):
    """A pure function of (sources, mixture); `domain` says which signals it takes: spectrogram or waveform."""

    domain: str

    def __call__(self, sources: Tensor, mixture: Tensor) -> Tensor: ...


def _takes(domain: str) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Target]:
    def mark(function: Callable[[Tensor, Tensor], Tensor]) -> Target:
        function.domain = domain  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return mark


@_takes("spectrogram")
def msa(sources: Tensor, mixture: Tensor) -> Tensor:
    """Magnitude spectrum approximation, |S_i| (Weninger et al., 2014)."""
    return sources.abs()


@_takes("spectrogram")
def psa(sources: Tensor, mixture: Tensor) -> Tensor:
    """Phase-sensitive spectrum approximation, |S_i| cos(angle S_i - angle Y) (Erdogan et al., 2015, eq. 8).

    It is the part of S_i in phase with the mixture, so it can be negative; 0 where the mixture is silent.
    """
    direction = mixture / mixture.abs().clamp_min(1e-12)
    return (sources * direction.conj().unsqueeze(1)).real


@_takes("spectrogram")
def tpsa(sources: Tensor, mixture: Tensor) -> Tensor:
    """Truncated phase-sensitive approximation, PSA clipped to [0, |Y|], which a mask in [0, 1] can reach."""
    return psa(sources, mixture).clamp_min(0).minimum(mixture.abs().unsqueeze(1))


@_takes("waveform")
def waveform(sources: Tensor, mixture: Tensor) -> Tensor:
    """The sources themselves, (B, S, C, T)."""
    return sources
