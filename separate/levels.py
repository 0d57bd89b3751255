"""Levels: the one that a network sees its mixture at, and gain and polarity of what it gives."""

from __future__ import annotations

import torch
from torch import Tensor

from separate.evaluation.sdr import inner_products
from separate.stft import STFT

REFERENCE = 0.1  # RMS, -20 dB re full scale
LEAST = 1e-5  # RMS, -100 dB re full scale: what is below is not raised further
RIDGE = 1e-3  # of the energy of an estimate: it costs 0.01 dB of level, and no gain exceeds 16 times its share
SILENT = 1e-14  # of the energy of the loudest estimate: the rounding of float32, which no gain may raise


def level(mixture: Tensor) -> Tensor:
    """(B, C, T) -> (B, 1, 1), by what each mixture is divided to have an RMS of -20 dB over its channels and samples.

    Silence stays silence: no mixture counts as quieter than -100 dB re full scale.
    """
    return _level(mixture.detach().square().mean(dim=(1, 2)))[:, None, None]


def spectral_level(spectrogram: Tensor, stft: STFT) -> Tensor:
    """The same of complex spectrograms (B, C, F, N) -> (B, 1, 1, 1), by Parseval's theorem."""
    power = spectrogram.detach().abs().square().mean(dim=(1, 3))  # (B, F), bins of positive frequency
    both = 2 * power.sum(1) - power[:, 0]
    if stft.n_fft % 2 == 0:
        both = both - power[:, -1]
    return _level(both / (stft.n_fft * stft.window.square().sum()))[:, None, None, None]


def _level(mean_square: Tensor) -> Tensor:
    return mean_square.clamp_min(LEAST**2).sqrt() / REFERENCE


def rescaled(estimates: Tensor, mixture: Tensor) -> Tensor:
    """Each estimate times the gain, with its sign, that makes their sum the mixture in the least squares.

    The minimal distortion principle (Matsuoka and Nakashima, 2001: of all scalings that which changes the observation
    least) with one real gain for each source, all solved for at once.  The channels of a source share it.
    A ridge holds the gains of similar estimates back; silent ones stay silent.
    estimates: (B, S, C, T); mixture: (B, C, T).
    """
    return estimates * gains(estimates, mixture)[:, :, None, None]


def gains(estimates: Tensor, mixture: Tensor) -> Tensor:
    """What `rescaled` multiplies the estimates with, (B, S)."""
    count = estimates.shape[1]
    products = inner_products(estimates.flatten(2), mixture.flatten(1).unsqueeze(1))  # (B, S + 1, S + 1)
    gram, observed = products[:, :count, :count], products[:, :count, count:]
    energy = gram.diagonal(dim1=1, dim2=2)  # (B, S)
    heard = (energy > SILENT * energy.amax(1, keepdim=True)) & (energy > torch.finfo(torch.float32).tiny)
    unit = torch.where(heard, energy, 1).rsqrt() * heard  # what gives an estimate an energy of 1
    gram = gram * unit.unsqueeze(1) * unit.unsqueeze(2)
    ridge = torch.diag_embed(RIDGE + (~heard).to(gram.dtype))
    factor, _ = torch.linalg.cholesky_ex(gram + ridge)
    shares = torch.cholesky_solve(observed * unit.unsqueeze(2), factor).squeeze(2)
    return (shares * unit).to(estimates.dtype)
