"""Equaliser: a random gain curve over frequency for each source."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from separate.data.example import Example
from separate.data.mixing.augmentation import Augmentation, Parameters, Signals
from separate.data.mixing.fourier import fast_length
from separate.shapes import Float

BANDS = 10  # evenly spaced in octaves from LOWEST to half the sample rate
LOWEST = 40.0  # Hz


class Equaliser(Augmentation):
    """Equalise each source by a random curve, whose gains in BANDS are uniform within +-gain dB."""

    keys = ("equaliser",)

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters | None:
        numbers = rng.random((len(example.sources), BANDS))
        return {"curves": (self.gain * (2 * numbers - 1)).astype(np.float32)} if self.gain else None

    @staticmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        return signals.change(lambda audio: equalise(audio, parameters["curves"], signals.sample_rate))


def equalise(
    audio: Float[Tensor, "*B C T"], gains: Float[Tensor, "*#B bands"], sample_rate: int
) -> Float[Tensor, "*B C T"]:
    """Filter (..., C, T) by gains (..., BANDS) in dB, the same for all channels, linear in octaves between bands."""
    frames = audio.shape[-1]
    size = fast_length(frames)
    frequencies = torch.fft.rfftfreq(size, 1 / sample_rate, device=audio.device).clamp_min(LOWEST)
    octaves = torch.log2(frequencies / LOWEST) / math.log2(sample_rate / 2 / LOWEST) * (BANDS - 1)
    below = octaves.floor().long().clamp_max(BANDS - 2)
    share = octaves - below
    curve = gains[..., below] * (1 - share) + gains[..., below + 1] * share  # dB
    return torch.fft.irfft(torch.fft.rfft(audio, n=size) * 10 ** (curve.unsqueeze(-2) / 20), n=size)[..., :frames]
