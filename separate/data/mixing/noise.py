"""Noise: recordings added to the mixture at a signal-to-noise ratio, but not to the sources."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from separate.audio import frames_at
from separate.data.example import Example
from separate.data.mixing.augmentation import (
    AudioFormat,
    Augmentation,
    Parameters,
    Signals,
    between,
    check_bounds,
    per_example,
)
from separate.data.mixing.equaliser import BANDS
from separate.data.storage.reading import Reader, Region, Span
from separate.data.tracks import Files


@dataclass
class Noise(Augmentation):
    """Add an excerpt of one of `files` to the mixture, with a probability.

    snr: [min, max] dB of the mixture over the noise, uniform.  reader: reads noise in the encoding of the sources.
    """

    keys = ("noise",)
    on_spectrograms = True
    after_mixing = True

    files: Files
    probability: float
    snr: Sequence[float]
    audio: AudioFormat
    reader: Reader

    def __post_init__(self) -> None:
        check_bounds("noise_snr", self.snr)

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters | None:
        chance = rng.random()
        if not self.files:
            return None
        later = copy.deepcopy(rng)  # skips the numbers of equaliser and reverb, for the same noise as earlier versions
        later.random((len(example.sources), BANDS + 2))
        number, choice, position = later.random(3)
        snr = between(self.snr, number) if chance < self.probability else np.inf
        return {"noise": self._excerpt(choice, position), "snr": snr}

    def _excerpt(self, choice: float, position: float) -> np.ndarray:
        """An excerpt of one of the files, repeated if it is shorter than an example."""
        piece = self.files[int(choice * len(self.files))]
        frames, grid = self.audio.frames, self.reader.grid
        length = frames_at(piece.info, self.audio.sample_rate)
        region, spans, at = Region((piece,), 0, length), [], 0
        start = grid * int(position * (max(length - frames, 0) // grid + 1))
        while at < frames:
            spans.append(Span(region, start, at, min(length - start, frames - at)))
            at += grid * -(-spans[-1].frames // grid)
            start = 0
        return self.reader.source(spans, frames)

    @staticmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        """Scale the noise to `snr` (B) dB below the mixture; an infinite snr adds none."""
        mixture, noise = signals.mixture, signals.encoding.decode(parameters["noise"])
        assert mixture is not None
        levels = [x.abs().square().flatten(1).mean(dim=1) for x in (mixture, noise)]
        ratio = torch.where(levels[1] > 0, (levels[0] / levels[1].clamp_min(1e-20)).sqrt(), 0.0)
        gain = ratio * 10 ** (-parameters["snr"] / 20)
        return replace(signals, mixture=mixture + per_example(gain, noise) * noise)
