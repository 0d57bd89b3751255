"""Reverb: convolve each source with an impulse response, and its reference with all or the begin of the response."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from separate.audio import frames_at
from separate.data.example import Example
from separate.data.mixing.augmentation import AudioFormat, Augmentation, Parameters, Signals
from separate.data.mixing.fourier import convolve
from separate.data.storage.reading import Reader, Region
from separate.data.tracks import Files, Piece

EARLY = 0.05  # seconds after the direct sound
DIRECT = 0.0025  # seconds in which the direct sound has its peak


@dataclass(frozen=True)
class Reverb(Augmentation):
    """Convolve each source with an impulse response of `files`, with a probability.

    seconds: the length to which responses are cut.  reference: the target of the network: `reverberant`, `early` (up to
    50 ms after the direct sound) or `dry` (the direct sound alone).
    """

    keys = ("reverb",)

    files: Files
    probability: float
    seconds: float
    reference: str
    audio: AudioFormat

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters | None:
        numbers = rng.random((len(example.sources), 2))
        if not self.files:
            return None
        responses, spans = zip(*(self._response(*pair) for pair in numbers), strict=True)
        if self.reference == "reverberant":
            return {"responses": np.stack(responses)}
        return {"responses": np.stack(responses), "reference_spans": np.stack(spans)}

    def _response(self, chance: float, choice: float) -> tuple[np.ndarray, np.ndarray]:
        """An impulse response (C, L), or a unit impulse, and the span (C, 2) in samples for the reference."""
        rate, channels = self.audio.sample_rate, self.audio.channels
        length = max(1, round(self.seconds * rate))
        response = np.eye(1, length, dtype=np.float32).repeat(channels, axis=0)
        direct = np.zeros(channels, int)
        if chance < self.probability:
            response, direct = impulse_response(self.files[int(choice * len(self.files))], rate, channels, length)
        if self.reference == "dry":
            return response, np.stack([direct, direct + 1], axis=1)
        return response, np.stack([0 * direct, direct + round(EARLY * rate) + 1], axis=1)

    @staticmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        """The references are convolved with a part of each response if `reference_spans` (B, S, C, 2) is given."""
        responses, spans = parameters["responses"], parameters.get("reference_spans")
        if spans is None:
            return signals.change(lambda audio: convolve(audio, responses))
        references = convolve(signals.references, cut(responses, spans))
        return replace(signals, sources=convolve(signals.sources, responses), references=references)


@lru_cache(maxsize=64)
def impulse_response(piece: Piece, sample_rate: int, channels: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A response (C, length) of unit energy from its direct sound on, and the peak (C) of the direct sound in samples.

    The direct sound of a channel begins where it first comes within 20 dB of the largest sample of all channels (ISO
    3382-1); its peak is the largest sample of the next 2.5 ms.  A silent channel has no direct sound.
    """
    whole = Region((piece,), 0, frames_at(piece.info, sample_rate))
    audio = Reader(sample_rate, channels).read(whole, 0, whole.length)
    level = np.abs(audio)
    begins = (level >= 0.1 * level.max(axis=1, keepdims=True)).argmax(axis=1)
    begins = np.where(level.any(axis=1), begins, whole.length - 1)
    first = begins.min()
    audio, level = audio[:, first : first + length], level[:, first : first + length]
    begins = np.minimum(begins - first, length - 1)
    within = round(DIRECT * sample_rate) + 1
    peaks = np.array([start + one[start : start + within].argmax() for one, start in zip(level, begins, strict=True)])
    response = np.zeros((channels, length), np.float32)
    response[:, : audio.shape[1]] = audio / np.sqrt(np.mean(np.sum(audio**2, axis=1)) + 1e-12)
    return response, peaks


def cut(responses: Tensor, spans: Tensor) -> Tensor:
    """Responses (..., L), zero before sample spans[..., 0] and from spans[..., 1] on."""
    numbers = torch.arange(responses.shape[-1], device=responses.device)
    return responses * ((numbers >= spans[..., :1]) & (numbers < spans[..., 1:]))
