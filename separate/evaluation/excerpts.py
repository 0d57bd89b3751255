"""Excerpts of recordings for a page: where they start, their common gain, and their sound as MP3."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torch import Tensor

from separate.resampling import resample

SECONDS = 10.0
STEP = 0.5  # seconds between the places where an excerpt may start
FLOOR = 1e-6  # of the power of the mixture: a source below is silent
PEAK = 0.89  # of full scale, -1 dB: MP3 overshoots a little
LOUDER = 100.0  # the most that a quiet recording is raised, 40 dB
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Listening:
    """A recording to listen to.  mixture: (C, T); references, estimates: {source: (C, T)}, all at sample_rate (Hz)."""

    track: str
    sample_rate: int
    mixture: Tensor
    references: Mapping[str, Tensor]
    estimates: Mapping[str, Tensor]


@dataclass(frozen=True)
class Excerpt:
    """Part of a recording.  start: in seconds; gain: of every sound, so that their levels compare."""

    heard: Listening
    start: float
    gain: float


def excerpt(whole: Listening) -> Excerpt:
    """The 10 s in which all sources are heard best, with one gain that brings the highest peak to -1 dB.

    Of the starts every 0.5 s it takes the one with the largest geometric mean of the sources' energies, so that a
    source that pauses counts against it.
    """
    rate, frames = whole.sample_rate, whole.mixture.shape[-1]
    length = min(round(SECONDS * rate), frames)
    starts = torch.arange(0, frames - length + 1, max(1, round(STEP * rate)))
    floor = FLOOR * whole.mixture.double().square().mean().clamp_min(1e-12)
    total = torch.zeros(len(starts), dtype=torch.float64)
    for reference in whole.references.values():
        energy = torch.nn.functional.pad(reference.double().square().mean(dim=0).cumsum(0), (1, 0))
        total += ((energy[starts + length] - energy[starts]) / max(length, 1) + floor).log()
    start = int(starts[total.argmax()])

    def cut(signal: Tensor) -> Tensor:
        return signal[..., start : start + length].detach().cpu().float()

    heard = Listening(
        whole.track,
        rate,
        cut(whole.mixture),
        {name: cut(signal) for name, signal in whole.references.items()},
        {name: cut(signal) for name, signal in whole.estimates.items()},
    )
    signals = [heard.mixture, *heard.references.values(), *heard.estimates.values()]
    peak = max((float(signal.abs().max()) for signal in signals if signal.numel()), default=0.0)
    return Excerpt(heard, start / rate, min(PEAK / peak, LOUDER) if peak > 0 else 1.0)


def sound(signal: Tensor, sample_rate: int, gain: float) -> bytes:
    """A signal (C, T) as MP3, which every browser plays, about 130 kbit/s.

    More than two channels are mixed to one.  Rates that MP3 does not have become the next one, at most 48 kHz.
    """
    if len(signal) > 2:
        signal = signal.mean(dim=0, keepdim=True)
    rate = next((known for known in MP3_RATES if known >= sample_rate), MP3_RATES[-1])
    samples = (resample(signal, sample_rate, rate) * gain).clamp(-1, 1)
    content = io.BytesIO()
    soundfile.write(content, samples.T.numpy().astype(np.float32), rate, format="MP3")
    return content.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """A data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def best_and_worst(scores: Mapping[str, float], higher_is_better: bool, count: int) -> Sequence[str]:
    """Tracks with the `count` best and the `count` worst scores, the best first; every track at most once."""
    ranked = sorted(scores, key=lambda track: (-scores[track] if higher_is_better else scores[track], track))
    chosen = [*ranked[:count], *ranked[max(count, len(ranked) - count) :]]
    return list(dict.fromkeys(chosen))
