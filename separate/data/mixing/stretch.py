"""Speed, tempo and pitch: one stretch of all sources of an example, by a phase vocoder and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from separate.data.example import Example
from separate.data.mixing.augmentation import Augmentation, Parameters, Signals, between, check_bounds
from separate.data.mixing.fourier import fast_lengths, resample_to
from separate.data.mixing.vocoder import vocode
from separate.shapes import Float

SHORT = 2**14  # samples, below which a transform of any length is fast enough
NEAR = 5e-4  # largest relative error of a resampling ratio, 0.9 cents


@dataclass(frozen=True)
class Stretch(Augmentation):
    """Change speed (a factor of tempo and pitch), tempo (a factor) and pitch (semitones), each uniform in its bounds.

    The rest of a recorded mixture is stretched with its sources.  frames: samples of an example after stretching.
    """

    keys = ("speed", "tempo", "pitch")

    speed: Sequence[float] | None
    tempo: Sequence[float] | None
    pitch: Sequence[float] | None
    frames: int

    def __post_init__(self) -> None:
        check_bounds("speed", self.speed, "[0.9,1.1]")
        check_bounds("tempo", self.tempo, "[0.9,1.1]")
        check_bounds("pitch", self.pitch)

    @property
    def read_factor(self) -> float:
        """The largest number of samples of an example before stretching, divided by `frames`."""
        if not (self.speed or self.tempo or self.pitch):
            return 1.0
        speed, tempo, lowest = max(self.speed or [1.0]), max(self.tempo or [1.0]), min(self.pitch or [0.0])
        rounded = (tempo * 2 ** (-lowest / 12) + 1) / self.frames  # up to the next sample
        return max(1.0, speed * tempo * (1 + NEAR)) + rounded

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters | None:
        speed, tempo, pitch = rng.random(3)
        if not (self.speed or self.tempo or self.pitch):
            return None
        factors = float(between(self.speed or [1.0, 1.0], speed)), float(between(self.tempo or [1.0, 1.0], tempo))
        return {"plan": StretchPlan.of(self.frames, *factors, float(between(self.pitch or [0.0, 0.0], pitch)))}

    @staticmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        """Stretch sources and rest together, so that their sum is the stretched mixture.  Must be applied first."""
        assert signals.references is signals.sources
        parts = [signals.sources] if signals.rest is None else [signals.sources, signals.rest.unsqueeze(1)]
        pairs = zip(torch.cat(parts, dim=1), parameters["plan"], strict=True)
        stretched = torch.stack([stretch(audio, plan, signals.sample_rate) for audio, plan in pairs])
        sources = stretched if signals.rest is None else stretched[:, :-1]
        rest = None if signals.rest is None else stretched[:, -1]
        return replace(signals, sources=sources, references=sources, rest=rest)


@dataclass(frozen=True)
class StretchPlan:
    """The lengths of a stretch from `read` samples to `frames`: a phase vocoder to `between` samples, then resampling.

    The resampler converts `resampled[0]` samples to `resampled[1]`; its input is padded and its output cut.
    """

    read: int
    between: int
    resampled: tuple[int, int]
    frames: int

    @classmethod
    def of(cls, frames: int, speed: float, tempo: float, semitones: float) -> StretchPlan:
        """A plan for `frames` samples at `speed` times the speed, `tempo` times the tempo and `semitones` higher.

        The resampling ratio is one of integers; from 1,000 samples on it is within 0.9 cents of the ratio asked for.
        """
        ratio = speed * 2 ** (semitones / 12)
        lengths = _resampling_lengths(frames, ratio)
        middle = -(-frames * lengths[0] // lengths[1])
        rate = tempo / 2 ** (semitones / 12)
        return cls(middle if abs(rate - 1) < 1e-9 else max(2, round(middle * rate)), middle, lengths, frames)


def _resampling_lengths(frames: int, ratio: float) -> tuple[int, int]:
    """The lengths frames * ratio and `frames`, both a little longer if that makes their Fourier transforms fast."""
    exact = max(2, round(frames * ratio))
    if exact == frames or min(exact, frames) < SHORT:
        return exact, frames
    before, after = fast_lengths(exact), fast_lengths(frames)
    error = np.abs(before[:, None] / after / ratio - 1)
    pairs = [(int(before[row]), int(after[column])) for row, column in np.argwhere(error < NEAR)]
    return min(pairs, default=(exact, frames), key=sum)


def stretch(audio: Float[Tensor, "S C _"], plan: StretchPlan, sample_rate: int) -> Float[Tensor, "S C {plan.frames}"]:
    """Change speed, tempo and pitch of all signals alike, (S, C, T) with T >= plan.read -> (S, C, plan.frames)."""
    audio = audio[..., : plan.read]
    if plan.read != plan.between:
        audio = vocode(audio, plan.between, sample_rate)
    if plan.between == plan.frames:
        return audio
    before, after = plan.resampled
    return resample_to(pad(audio, (0, before - plan.between)), after)[..., : plan.frames]
