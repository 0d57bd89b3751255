"""STFT and its exact-length inverse."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.shapes import Complex, Float

unfold_backward = torch.ops.aten.unfold_backward  # the adjoint of Tensor.unfold: overlap-add

WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hann": torch.hann_window,
    "sqrt_hann": lambda length: torch.hann_window(length).sqrt(),
    "hamming": torch.hamming_window,
}


LEAST_OVERLAP = 1e-3  # sum of squared windows at a sample; below it the inverse errs by more than 1e-5 in float32


class STFT(nn.Module):
    """Short-time Fourier transform with zero padding at both ends, and its exact inverse.

    n_fft: window and transform length in samples, even or odd; hop: samples between frames; window: hann, sqrt_hann
    or hamming, periodic.  ValueError for a hop without an exact inverse, because some sample has too little weight.
    """

    def __init__(self, n_fft: int, hop: int, window: str = "sqrt_hann") -> None:
        super().__init__()
        if window not in WINDOWS:
            raise ValueError(f"unknown window {window}; choose from {', '.join(WINDOWS)}")
        if n_fft < 1 or hop < 1:
            raise ValueError(f"n_fft={n_fft} and hop={hop} must be at least 1 sample")
        if (least := overlap(WINDOWS[window](n_fft), hop)) < LEAST_OVERLAP:
            raise ValueError(
                f"hop={hop} has no exact inverse with n_fft={n_fft} and window={window}: between two frames their "
                f"squared windows add up to only {least:.1g} of the peak; use a shorter hop, e.g. {max(n_fft // 2, 1)}"
            )
        self.n_fft = n_fft
        self.hop = hop
        self.window_name = window
        self.window: Tensor
        self.register_buffer("window", WINDOWS[window](n_fft), persistent=False)

    @property
    def bins(self) -> int:
        """F, the number of frequency bins."""
        return self.n_fft // 2 + 1

    def forward(self, waveform: Float[Tensor, "*B T"]) -> Complex[Tensor, "*B F N"]:
        """-> complex64; frame n of N = 1 + ceil(T / hop) is centred on sample n hop."""
        flat = waveform.float().reshape(-1, waveform.shape[-1])
        # the last frame is centred on or after the last sample; an odd window extends one sample less to the left
        flat = nn.functional.pad(flat, (0, -flat.shape[-1] % self.hop + self.n_fft % 2))
        spectrogram = torch.stft(
            flat, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrogram.reshape(*waveform.shape[:-1], *spectrogram.shape[-2:])

    def inverse(self, spectrogram: Complex[Tensor, "*B F N"], length: int) -> Float[Tensor, "*B {length}"]:
        """Differentiable; inverse(forward(x), T) is x."""
        flat = rearrange(spectrogram, "... f n -> (...) n f")
        waveform = weighted_overlap_add(torch.fft.irfft(flat, n=self.n_fft), self.window, self.hop, length)
        return waveform.reshape(*spectrogram.shape[:-2], length)


def weighted_overlap_add(
    frames: Float[Tensor, "B N n_fft"], window: Float[Tensor, " n_fft"], hop: int, length: int
) -> Float[Tensor, "B {length}"]:
    """Add the frames of an inverse STFT; sample 0 is the middle of the first frame, samples past the last are 0.

    The least-squares inverse (Griffin and Lim, 1984), as in `torch.istft`, but without its check of the window's
    envelope, which makes the host wait for a GPU at each call.
    """
    count, size = frames.shape[1:]
    span = (count - 1) * hop + size
    envelope = unfold_backward(window.square().expand(1, count, size), [1, span], 1, size, hop)
    total = unfold_backward(frames * window, [len(frames), span], 1, size, hop)
    kept = slice(size // 2, size // 2 + length)
    waveform = total[:, kept] / envelope[:, kept]
    return nn.functional.pad(waveform, (0, length - waveform.shape[1]))


def overlap(window: Float[Tensor, " n_fft"], hop: int) -> float:
    """The smallest sum of the squared windows of two adjacent frames at a sample, re the squared peak.

    Other frames are left out, because there are none at the ends of a signal.  hop: samples.
    """
    square = window.double().square()
    right, left = square[len(window) // 2 :], square[: len(window) // 2 + 1].flip(0)  # from a frame's centre outwards
    first, second = (nn.functional.pad(half, (0, hop + 1 - len(half))) for half in (right, left))
    return ((first + second.flip(0)).min() / square.max()).item()


def mel_filterbank(bins: int, sample_rate: float, mels: int) -> Float[Tensor, "{mels} {bins}"]:
    """Triangular mel bands between 0 Hz and half the sample rate (Hz), of equal width in mel: 2595 log10(1 + f / 700).

    The first and the last band extend to the edges, so the weights of every bin sum to 1.  ValueError if a band
    contains no bin.
    """
    if not 1 <= mels <= bins:
        raise ValueError(f"mels={mels} must lie between 1 and the number of bins, {bins}")
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    position = 2595 * torch.log10(1 + torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64, device="cpu") / 700)
    position = (position / top * (mels + 1)).clamp(1, mels)  # band k peaks at k = 1 .. mels
    bands = torch.arange(1, mels + 1, dtype=torch.float64, device="cpu")[:, None]
    filters = (1 - (position - bands).abs()).clamp_min(0)
    if (filters.amax(dim=1) < 1e-6).any():
        raise ValueError(f"mels={mels}: some bands hold none of the {bins} bins; use fewer")
    return filters.float()
