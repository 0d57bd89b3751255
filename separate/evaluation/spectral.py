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
    levels = [10 * torch.log10(_magnitudes(x, n_fft, hop).square().clamp_min(LEAST)) for x in (estimates, references)]
    return (levels[0] - levels[1]).square().mean(-2).sqrt().mean((-1, -2))


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
    levels = []
    for signals in (estimates, references):
        mel = torch.einsum("fm,bscfn->bscmn", bands.to(signals), _magnitudes(signals, FFT, HOP, "constant"))
        level = 20 * torch.log10(mel.clamp_min(LEAST))
        levels.append(level.maximum(level.amax((2, 3, 4), keepdim=True) - RANGE))
    difference = levels[0] - levels[1]
    excess, lack = (_mean_of_positive(x) for x in (difference, -difference))
    return 100 / (1 + excess), 100 / (1 + lack)


def _mean_of_positive(x: Tensor) -> Tensor:
    """The mean of the positive values, 0 without any.  (B, S, C, M, N) -> (B, S)"""
    return x.clamp_min(0).sum((2, 3, 4)) / (x > 0).sum((2, 3, 4)).clamp_min(1)


def _magnitudes(signals: Tensor, n_fft: int, hop: int, padding: str = "reflect") -> Tensor:
    """(B, S, C, T) -> (B, S, C, F, N); signals too short for a reflection are padded with zeros."""
    window = torch.hann_window(n_fft, dtype=signals.dtype, device=signals.device)
    mode = padding if signals.shape[-1] > n_fft // 2 else "constant"
    spectrogram = torch.stft(signals.flatten(0, 2), n_fft, hop, window=window, pad_mode=mode, return_complex=True)
    return spectrogram.abs().unflatten(0, signals.shape[:3])
