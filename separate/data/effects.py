"""Changes of sound on the device, for a whole batch: speed, tempo and pitch, equalisers, rooms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = 0.046  # seconds of the phase vocoder's frames
BANDS = 10  # of the equaliser, evenly spaced in octaves from LOWEST to half the sample rate
LOWEST = 40.0  # Hz


@dataclass(frozen=True)
class Stretch:
    """What makes `frames` samples of `read` ones: stretched by a phase vocoder to `between`, then resampled.

    Speed s, tempo t and pitch p semitones read s t times the samples that they give, and resample s 2^(p / 12) times as
    many.
    """

    read: int
    between: int
    frames: int

    @classmethod
    def of(cls, frames: int, speed: float, tempo: float, semitones: float) -> Stretch:
        from scipy.fft import next_fast_len

        between = next_fast_len(max(2, round(frames * speed * 2 ** (semitones / 12))), real=True)
        rate = tempo / 2 ** (semitones / 12)
        read = between if abs(rate - 1) < 1e-9 else max(2, round(between * rate))
        return cls(read, between, frames)


def stretch(audio: Tensor, how: Stretch, sample_rate: int) -> Tensor:
    """(..., T) of at least `how.read` samples -> (..., how.frames)."""
    audio = audio[..., : how.read]
    if how.read != how.between:
        audio = vocode(audio, how.between, sample_rate)
    return resample_to(audio, how.frames)


def resample_to(audio: Tensor, frames: int) -> Tensor:
    """Another number of samples for the same time, (..., T) -> (..., frames), by its spectrum (band limited)."""
    length = audio.shape[-1]
    if length == frames:
        return audio
    spectrum = torch.fft.rfft(audio)
    return torch.fft.irfft(spectrum[..., : min(spectrum.shape[-1], frames // 2 + 1)], n=frames) * (frames / length)


def vocode(audio: Tensor, frames: int, sample_rate: int) -> Tensor:
    """Another duration at the same pitch, (..., T) -> (..., frames).

    A phase vocoder whose bins keep their phases to the nearest peak (Laroche and Dolson, 1999, identity phase locking).
    """
    n_fft = 2 ** math.ceil(math.log2(WINDOW * sample_rate))
    hop = n_fft // 4
    window = torch.hann_window(n_fft, device=audio.device)
    flat = audio.reshape(-1, audio.shape[-1])
    spectra = torch.stft(flat, n_fft, hop, window=window, return_complex=True).mT  # (B, N, F)
    steps = torch.arange(0, spectra.shape[1] - 1, audio.shape[-1] / frames, device=audio.device)
    before = steps.long()
    share = (steps - before).unsqueeze(1)
    phases, size = spectra.angle(), spectra.abs()
    advance = torch.linspace(0, math.pi * hop, n_fft // 2 + 1, device=audio.device)  # of each bin's own frequency
    ahead = phases[:, before + 1] - phases[:, before] - advance
    ahead = advance + ahead - 2 * math.pi * torch.round(ahead / (2 * math.pi))
    size = (1 - share) * size[:, before] + share * size[:, before + 1]
    peaks = _nearest_peak(size)
    found, expected = [], phases[:, 0]
    for step, frame in enumerate(before.tolist()):
        turn = (expected - phases[:, frame]).gather(1, peaks[:, step])  # by which each peak is away from its place
        found.append(phases[:, frame] + turn)
        expected = found[-1] + ahead[:, step]
    slower = torch.polar(size, torch.stack(found, dim=1)).mT
    return torch.istft(slower, n_fft, hop, window=window, length=frames).reshape(*audio.shape[:-1], frames)


def _nearest_peak(size: Tensor) -> Tensor:
    """For each bin of (..., F) the index of the nearest that is larger than two on either side; itself without one."""
    around = torch.nn.functional.max_pool1d(size.flatten(0, -2), 5, stride=1, padding=2).reshape(size.shape)
    bins = torch.arange(size.shape[-1], device=size.device).expand(size.shape)
    is_peak = (size >= around) & (size > 0)
    below = torch.where(is_peak, bins, -(2**30)).cummax(dim=-1).values
    above = torch.where(is_peak, bins, 2**30).flip(-1).cummin(dim=-1).values.flip(-1)
    nearest = torch.where(bins - below <= above - bins, below, above)
    return torch.where((nearest >= 0) & (nearest < size.shape[-1]), nearest, bins)


def equalise(audio: Tensor, gains: Tensor, sample_rate: int) -> Tensor:
    """(..., C, T) with gains (..., BANDS) in dB, the same for all channels, linear in octaves between the bands."""
    frames = audio.shape[-1]
    frequencies = torch.fft.rfftfreq(frames, 1 / sample_rate, device=audio.device).clamp_min(LOWEST)
    octaves = torch.log2(frequencies / LOWEST) / math.log2(sample_rate / 2 / LOWEST) * (BANDS - 1)
    below = octaves.floor().long().clamp_max(BANDS - 2)
    share = octaves - below
    curve = gains[..., below] * (1 - share) + gains[..., below + 1] * share  # dB
    return torch.fft.irfft(torch.fft.rfft(audio) * 10 ** (curve.unsqueeze(-2) / 20), n=frames)


def reverberate(audio: Tensor, responses: Tensor) -> Tensor:
    """Convolve (..., C, T) with impulse responses (..., C, L), cut to T samples."""
    frames = audio.shape[-1]
    size = frames + responses.shape[-1] - 1
    return torch.fft.irfft(torch.fft.rfft(audio, n=size) * torch.fft.rfft(responses, n=size), n=size)[..., :frames]
