"""Resampling and convolution through Fourier transforms of fast lengths."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from separate.shapes import Float


def fast_length(least: int) -> int:
    """The smallest length >= `least` with a fast Fourier transform."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(least))


@lru_cache(maxsize=1024)
def fast_lengths(least: int) -> np.ndarray:
    """The lengths from `least` to 6 % above it with a fast Fourier transform."""
    found = [fast_length(least)]
    while (number := fast_length(found[-1] + 1)) < least * 1.06:
        found.append(number)
    return np.array(found)


def resample_to(audio: Float[Tensor, "*B _"], frames: int) -> Float[Tensor, "*B {frames}"]:
    """Resample by the spectrum (band limited), (..., T) -> (..., frames) of the same duration.

    The signal is assumed periodic. As in `scipy.signal.resample`, the Nyquist bin of the shorter length stands for two
    bins of the longer one, a positive and a negative frequency.
    """
    length = audio.shape[-1]
    if length == frames:
        return audio
    shorter = min(length, frames)
    spectrum = torch.fft.rfft(audio)[..., : shorter // 2 + 1]
    if shorter % 2 == 0:
        spectrum[..., -1] *= 2.0 if frames < length else 0.5
    return torch.fft.irfft(spectrum, n=frames) * (frames / length)


def convolve(audio: Float[Tensor, "*B C T"], responses: Float[Tensor, "*#B C L"]) -> Float[Tensor, "*B C T"]:
    """Convolve (..., C, T) with impulse responses (..., C, L), cut to T samples."""
    frames = audio.shape[-1]
    size = fast_length(frames + responses.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(audio, n=size) * torch.fft.rfft(responses, n=size), n=size)[..., :frames]
