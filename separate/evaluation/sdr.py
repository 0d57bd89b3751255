"""SI-SDR and SNR, in dB, as pure functions of (estimate, reference)."""

from __future__ import annotations

import torch
from torch import Tensor


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant SDR in dB (Le Roux et al., 2019, eq. 5), means not removed.  (..., T) twice -> (...)

    With r the cosine between the two signals it is 10 log10(r^2 / (1 - r^2)), and so unmoved by the gain of either.
    Silence on either side, where it has no value, gives the floor 10 log10(eps): -69 dB in float32, -157 in float64.
    """
    estimate, reference = estimate.to(_precise(estimate)), reference.to(_precise(reference))
    eps = torch.finfo(estimate.dtype).eps
    cosine = (_unit(estimate) * _unit(reference)).sum(-1)
    signal = cosine.square()
    return 10 * torch.log10((signal + eps) / (1 - signal).clamp_min(0).add(eps))


def snr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Signal-to-noise ratio in dB, 10 log10(|s|^2 / |s - e|^2): levels count.  (..., T) twice -> (...)

    A silent reference gives -inf, a perfect estimate +inf.
    """
    estimate, reference = estimate.to(_precise(estimate)), reference.to(_precise(reference))
    return 10 * torch.log10(reference.square().sum(-1) / (reference - estimate).square().sum(-1))


def _unit(signal: Tensor) -> Tensor:
    energy = signal.square().sum(-1, keepdim=True)
    return signal * torch.rsqrt(energy + torch.finfo(signal.dtype).tiny ** 0.5)


def _precise(signal: Tensor) -> torch.dtype:
    return torch.float64 if signal.dtype == torch.float64 else torch.float32
