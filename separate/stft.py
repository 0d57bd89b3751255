"""STFT and its exact-length inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hann": torch.hann_window,
    "sqrt_hann": lambda length: torch.hann_window(length).sqrt(),
    "hamming": torch.hamming_window,
}


class STFT(nn.Module):
    """Short-time Fourier transform with zero padding at both ends, and the inverse that returns every sample.

    n_fft: window and transform length in samples; hop: samples between frames, at most n_fft / 2;
    window: hann, sqrt_hann or hamming, periodic.
    """

    def __init__(self, n_fft: int, hop: int, window: str = "sqrt_hann") -> None:
        super().__init__()
        if window not in WINDOWS:
            raise ValueError(f"unknown window {window}; choose from {', '.join(WINDOWS)}")
        if not 1 <= hop <= n_fft // 2:
            raise ValueError(f"hop={hop} must lie between 1 and n_fft / 2 = {n_fft // 2} for an exact inverse")
        self.n_fft = n_fft
        self.hop = hop
        self.window: Tensor
        self.register_buffer("window", WINDOWS[window](n_fft), persistent=False)

    @property
    def bins(self) -> int:
        """F, the number of frequency bins."""
        return self.n_fft // 2 + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """(..., T) real -> (..., F, N) complex64; frame n of N = 1 + ceil(T / hop) is centred on sample n hop."""
        flat = waveform.float().reshape(-1, waveform.shape[-1])
        flat = nn.functional.pad(flat, (0, -flat.shape[-1] % self.hop))  # no sample hangs on a window's last taper
        spectrogram = torch.stft(
            flat, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrogram.reshape(*waveform.shape[:-1], *spectrogram.shape[-2:])

    def inverse(self, spectrogram: Tensor, length: int) -> Tensor:
        """spectrogram: (..., F, N) complex -> (..., length), differentiable; inverse(forward(x), T) is x."""
        flat = rearrange(spectrogram, "... f n -> (...) f n")
        waveform = torch.istft(flat, self.n_fft, self.hop, window=self.window, center=True, length=length)
        return waveform.reshape(*spectrogram.shape[:-2], length)
