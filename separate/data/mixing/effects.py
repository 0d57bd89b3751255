"""Changes of sound on the device, for a whole batch: speed, tempo and pitch, equalisers, rooms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from separate.data.mixing.vocoder import vocode
from separate.shapes import Float

BANDS = 10  # of the equaliser, evenly spaced in octaves from LOWEST to half the sample rate
LOWEST = 40.0  # Hz
SHORT = 2**14  # samples, below which any length has a transform that is fast enough
NEAR = 5e-4  # largest relative error of a resampling ratio, 0.9 cents


@dataclass(frozen=True)
class Stretch:
    """How `read` samples become `frames`: a phase vocoder to `between` samples, then resampling.

    The resampler turns `resampled[0]` samples into `resampled[1]`; its input is padded and its output cut.
    """

    read: int
    between: int
    resampled: tuple[int, int]
    frames: int

    @classmethod
    def of(cls, frames: int, speed: float, tempo: float, semitones: float) -> Stretch:
        """For `frames` samples at `speed` times the speed, `tempo` times the tempo and `semitones` higher.

        The resampling ratio is one of integers; from 1,000 samples on it is within 0.9 cents of the ratio asked for.
        """
        ratio = speed * 2 ** (semitones / 12)
        lengths = _lengths(frames, ratio)
        between = -(-frames * lengths[0] // lengths[1])
        rate = tempo / 2 ** (semitones / 12)
        return cls(between if abs(rate - 1) < 1e-9 else max(2, round(between * rate)), between, lengths, frames)


def _lengths(frames: int, ratio: float) -> tuple[int, int]:
    """The lengths frames * ratio and `frames`, both a little longer where that makes their Fourier transforms fast."""
    exact = max(2, round(frames * ratio))
    if exact == frames or min(exact, frames) < SHORT:
        return exact, frames
    before, after = _fast_lengths(exact), _fast_lengths(frames)
    error = np.abs(before[:, None] / after / ratio - 1)
    pairs = [(int(before[row]), int(after[column])) for row, column in np.argwhere(error < NEAR)]
    return min(pairs, default=(exact, frames), key=sum)


@lru_cache(maxsize=1024)
def _fast_lengths(least: int) -> np.ndarray:
    """The lengths from `least` to 6 % above it that have a fast Fourier transform."""
    found = [_fast_length(least)]
    while (number := _fast_length(found[-1] + 1)) < least * 1.06:
        found.append(number)
    return np.array(found)


def _fast_length(least: int) -> int:
    """The shortest length from `least` on that has a fast Fourier transform."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(least))


def stretch(audio: Float[Tensor, "S C _"], how: Stretch, sample_rate: int) -> Float[Tensor, "S C {how.frames}"]:
    """Change speed, tempo and pitch of all signals alike, (S, C, T) with T >= how.read -> (S, C, how.frames)."""
    audio = audio[..., : how.read]
    if how.read != how.between:
        audio = vocode(audio, how.between, sample_rate)
    if how.between == how.frames:
        return audio
    before, after = how.resampled
    return resample_to(pad(audio, (0, before - how.between)), after)[..., : how.frames]


def resample_to(audio: Float[Tensor, "*B _"], frames: int) -> Float[Tensor, "*B {frames}"]:
    """Another number of samples for the same time, (..., T) -> (..., frames), by its spectrum (band limited).

    The signal is taken as periodic. As in `scipy.signal.resample`, the Nyquist bin of the shorter length stands for two
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


def equalise(
    audio: Float[Tensor, "*B C T"], gains: Float[Tensor, "*#B bands"], sample_rate: int
) -> Float[Tensor, "*B C T"]:
    """(..., C, T) with gains (..., BANDS) in dB, the same for all channels, linear in octaves between the bands."""
    frames = audio.shape[-1]
    size = _fast_length(frames)
    frequencies = torch.fft.rfftfreq(size, 1 / sample_rate, device=audio.device).clamp_min(LOWEST)
    octaves = torch.log2(frequencies / LOWEST) / math.log2(sample_rate / 2 / LOWEST) * (BANDS - 1)
    below = octaves.floor().long().clamp_max(BANDS - 2)
    share = octaves - below
    curve = gains[..., below] * (1 - share) + gains[..., below + 1] * share  # dB
    return torch.fft.irfft(torch.fft.rfft(audio, n=size) * 10 ** (curve.unsqueeze(-2) / 20), n=size)[..., :frames]


def reverberate(audio: Float[Tensor, "*B C T"], responses: Float[Tensor, "*#B C L"]) -> Float[Tensor, "*B C T"]:
    """Convolve (..., C, T) with impulse responses (..., C, L), cut to T samples."""
    frames = audio.shape[-1]
    size = _fast_length(frames + responses.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(audio, n=size) * torch.fft.rfft(responses, n=size), n=size)[..., :frames]
