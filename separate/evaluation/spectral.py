"""Metrics of magnitude spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor

from separate.shapes import Float

LEAST = 1e-10  # of a power or a magnitude in the logarithm
FFT, HOP, MELS, RANGE = 4096, 1024, 512, 80.0  # of `bleedless_and_fullness`, for 44.1 kHz; the range in dB


def log_spectral_distance(
    estimates: Float[Tensor, "B S C T"], references: Float[Tensor, "B S C T"], n_fft: int = 2048, hop: int = 512
) -> Float[Tensor, "B S"]:
    """Root mean square over frequency of the difference of log power spectra in dB, mean over frames and channels.

    (B, S, C, T) twice -> (B, S); Gray and Markel, "Distance measures for speech processing", 1976.  Hann windows;
    powers below 1e-10 count as 1e-10.
    """
    found = []
    for pair in zip(
        *(x.flatten(0, 2) for x in (estimates, references)), strict=True
    ):  # one channel at a time in memory
        levels = [10 * torch.log10(_magnitudes(x, n_fft, hop).square().clamp_min(LEAST)) for x in pair]
        found.append((levels[0] - levels[1]).square().mean(0).sqrt().mean())
    return torch.stack(found).unflatten(0, estimates.shape[:3]).mean(-1)


def bleedless_and_fullness(
    estimates: Float[Tensor, "B S C T"], references: Float[Tensor, "B S C T"], sample_rate: int
) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
    """100 / (1 + excess) and 100 / (1 + lack) of the mel spectrogram in dB, (B, S, C, T) twice -> (B, S) twice.

    As Music-Source-Separation-Training reports them: excess is the mean over the cells in which the estimate is louder
    than the reference, lack that over the cells in which it is quieter; 100 is the best.  Magnitudes in 512 mel bands
    (Slaney's) of transforms of 4096 samples, with at most 80 dB below the loudest cell of a source.
    """
    from torchaudio.functional import melscale_fbanks

    bands = melscale_fbanks(FFT // 2 + 1, 0.0, sample_rate / 2, MELS, sample_rate, norm="slaney", mel_scale="slaney")
    bands = bands.T.to(estimates.device, torch.float64)
    found = []
    for pair in zip(*(x.flatten(0, 1) for x in (estimates, references)), strict=True):  # one source at a time in memory
        levels = []
        for source in pair:
            mel = torch.stack([bands @ _magnitudes(channel, FFT, HOP, "constant") for channel in source])
            level = 20 * torch.log10(mel.clamp_min(LEAST))
            levels.append(level.maximum(level.max() - RANGE))
        difference = levels[0] - levels[1]
        found.append(torch.stack([_mean_of_positive(x) for x in (difference, -difference)]))
    bleedless, fullness = (100 / (1 + torch.stack(found))).unflatten(0, estimates.shape[:2]).unbind(-1)
    return bleedless, fullness


def _mean_of_positive(x: Tensor) -> Tensor:
    """The mean of the positive values, 0 without any."""
    return x.clamp_min(0).sum() / (x > 0).sum().clamp_min(1)


def _magnitudes(signal: Tensor, n_fft: int, hop: int, padding: str = "reflect") -> Tensor:
    """(T,) -> (F, N) in float64; a signal too short for a reflection is padded with zeros."""
    window = torch.hann_window(n_fft, dtype=torch.float64, device=signal.device)
    mode = padding if len(signal) > n_fft // 2 else "constant"
    return torch.stft(signal.double(), n_fft, hop, window=window, pad_mode=mode, return_complex=True).abs()
