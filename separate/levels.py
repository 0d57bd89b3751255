"""The level of the input of a network, and the gain and polarity of its estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from separate.evaluation.sdr import inner_products
from separate.shapes import Complex, Float
from separate.stft import STFT

REFERENCE = 0.1  # RMS, -20 dB re full scale
FLOOR = 1e-5  # RMS, -100 dB re full scale: quieter mixtures count as this
RIDGE = 1e-3  # re the energy of an estimate: lowers the level by 0.01 dB, and limits it to 16 times the mixture's RMS
SILENT = 1e-14  # re the energy of the loudest estimate: a weaker one is float32 rounding error and gets a gain of 0


def level(mixture: Float[Tensor, "B C T"]) -> Float[Tensor, "B 1 1"]:
    """Divisor that gives each mixture an RMS of -20 dB re full scale over channels and samples.  (B, C, T) -> (B, 1, 1)

    Mixtures below -100 dB re full scale count as -100 dB, so that silence stays silence.
    """
    return _level(mixture.detach().square().mean(dim=(1, 2)))[:, None, None]


def spectral_level(spectrogram: Complex[Tensor, "B C F N"], stft: STFT) -> Float[Tensor, "B 1 1 1"]:
    """`level` of complex spectrograms, by Parseval's theorem.  (B, C, F, N) -> (B, 1, 1, 1)"""
    power = spectrogram.detach().abs().square().mean(dim=(1, 3))  # (B, F), non-negative frequencies
    both = 2 * power.sum(1) - power[:, 0]
    if stft.n_fft % 2 == 0:
        both = both - power[:, -1]
    return _level(both / (stft.n_fft * stft.window.square().sum()))[:, None, None, None]


def _level(mean_square: Tensor) -> Tensor:
    """Mean squares to divisors."""
    return mean_square.clamp_min(FLOOR**2).sqrt() / REFERENCE


def rescaled(estimates: Float[Tensor, "B S C T"], mixture: Float[Tensor, "B C T"]) -> Float[Tensor, "B S C T"]:
    """Each estimate times a signed gain, so that the estimates sum to the mixture with the least squared error.

    Minimal distortion principle (Matsuoka and Nakashima, 2001) with one real gain for each source and all its channels;
    the gains are solved jointly.  A ridge limits the gains of similar estimates; silent estimates stay silent.
    estimates: (B, S, C, T); mixture: (B, C, T) -> (B, S, C, T)
    """
    return estimates * gains(estimates, mixture)[:, :, None, None]


def gains(estimates: Float[Tensor, "B S C T"], mixture: Float[Tensor, "B C T"]) -> Float[Tensor, "B S"]:
    """The gains of `rescaled`."""
    count = estimates.shape[1]
    products = inner_products(estimates.flatten(2), mixture.flatten(1).unsqueeze(1))  # (B, S + 1, S + 1)
    gram, observed = products[:, :count, :count], products[:, :count, count:]
    energy = gram.diagonal(dim1=1, dim2=2)  # (B, S)
    not_silent = (energy > SILENT * energy.amax(1, keepdim=True)) & (energy > torch.finfo(torch.float32).tiny)
    unit = torch.where(not_silent, energy, 1).rsqrt() * not_silent  # scales an estimate to an energy of 1
    gram = gram * unit.unsqueeze(1) * unit.unsqueeze(2)
    ridge = torch.diag_embed(RIDGE + (~not_silent).to(gram.dtype))
    factor, _ = torch.linalg.cholesky_ex(gram + ridge)
    shares = torch.cholesky_solve(observed * unit.unsqueeze(2), factor).squeeze(2)
    return (shares * unit).to(estimates.dtype)
