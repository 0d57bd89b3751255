"""Resampling of whole signals and of spans by a Kaiser-windowed sinc."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from math import ceil, gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

from separate.shapes import Float

LOWPASS_WIDTH = 64  # zero crossings of the kernel on each side
ROLLOFF = 0.9475937167399596  # cutoff re the Nyquist frequency, of resampy's kaiser_best
BETA = 14.769656459379492  # of the Kaiser window, of resampy's kaiser_best
LARGEST_KERNEL = 2**22  # coefficients: 16 MB, and 160 MB while torchaudio computes them
GROUP = 64  # output samples of one matrix product in `Polyphase`
TABLE = 4096  # entries per zero crossing of the tabulated kernel; the error of interpolation is below 1e-7
PRODUCTS = 2**20  # weights of one block of output samples in `Polyphase` and `Interpolator`


def resample(audio: Float[Tensor, "*B _"], old: int, new: int) -> Float[Tensor, "*B _"]:
    """(..., T) at `old` Hz -> (..., ceil(T new / old)) at `new` Hz, by a Kaiser-windowed sinc (Smith, 2002)."""
    return audio if old == new else resampler(old, new)(audio)


class Resampler(ABC):
    """Resampling from `old` to `new` samples, two integers without a common factor."""

    def __init__(self, old: int, new: int) -> None:
        self.old, self.new = old, new
        self.copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, audio: Float[Tensor, "*B _"]) -> Float[Tensor, "*B _"]:
        """(..., T) -> (..., ceil(T new / old))"""
        return self.span(audio, 0, 0, ceil(audio.shape[-1] * self.new / self.old))

    @abstractmethod
    def reach(self, start: int, frames: int) -> tuple[int, int]:
        """(first, stop) of the input samples that determine output samples start to start + frames."""

    @abstractmethod
    def span(self, audio: Float[Tensor, "*B _"], first: int, start: int, frames: int) -> Float[Tensor, "*B _"]:
        """Output samples start to start + frames, fewer past the end of `audio`.

        audio: (..., T), the input from sample `first` on; it must cover `reach(start, frames)`.
        """

    def _like(self, weights: Tensor, audio: Tensor) -> Tensor:
        """The weights on the device and in the dtype of `audio`; cached, because the host waits for a transfer."""
        place = (audio.device, audio.dtype)
        if place not in self.copies:
            with torch.inference_mode(False):  # so that a gradient can pass through them later
                self.copies[place] = weights.to(*place)
        return self.copies[place]


class SingleMatrix(Resampler):
    """torchaudio's kernel as one matrix, multiplied with blocks of about 128 input samples.

    The kernel is a convolution with a stride of `old` and `new` channels.  It is slow for a small stride, as from 44.1
    to 22.05 kHz, so a block takes several strides.
    """

    def __init__(self, old: int, new: int) -> None:
        from torchaudio.transforms import Resample

        super().__init__(old, new)
        window = {"lowpass_filter_width": LOWPASS_WIDTH, "rolloff": ROLLOFF, "beta": BETA}
        made = Resample(old, new, "sinc_interp_kaiser", **window)
        kernel = made.kernel[:, 0]  # (new, taps)
        self.width, taps = made.width, kernel.shape[1]
        self.steps = max(1, 128 // self.old)
        self.support = self.old * (self.steps - 1) + taps  # input samples of a block
        with torch.inference_mode(False):  # so that a gradient can pass through it later
            self.matrix = torch.zeros(self.support, self.steps * self.new)
        for step in range(self.steps):
            rows = slice(step * self.old, step * self.old + taps)
            self.matrix[rows, step * self.new : (step + 1) * self.new] = kernel.T

    def __call__(self, audio: Float[Tensor, "*B _"]) -> Float[Tensor, "*B _"]:
        frames = ceil(audio.shape[-1] * self.new / self.old)
        block = self.steps * self.old
        blocks = ceil(frames / (self.steps * self.new))
        after = (blocks - 1) * block + self.support - self.width - audio.shape[-1]
        inputs = pad(audio, (self.width, max(after, 0))).unfold(-1, self.support, block)[..., :blocks, :]
        return (inputs @ self._like(self.matrix, audio)).flatten(-2)[..., :frames]

    def reach(self, start: int, frames: int) -> tuple[int, int]:
        margin = ceil(LOWPASS_WIDTH * max(1, self.old / self.new) / ROLLOFF / self.old) + 1  # in units of `old`
        first = max(start // self.new - margin, 0)
        return first * self.old, (ceil((start + frames) / self.new) + margin) * self.old

    def span(self, audio: Float[Tensor, "*B _"], first: int, start: int, frames: int) -> Float[Tensor, "*B _"]:
        return self(audio)[..., start - first // self.old * self.new :][..., :frames]


class WindowedSinc(Resampler):
    """The same kernel evaluated for ratios of large integers, for which one matrix is too large (Smith, 2002)."""

    block_frames: int  # output samples computed at a time

    def __init__(self, old: int, new: int) -> None:
        super().__init__(old, new)
        self.cutoff = min(old, new) * ROLLOFF / old  # zero crossings per sample
        self.width = ceil(LOWPASS_WIDTH / self.cutoff)  # samples of the kernel on each side

    def reach(self, start: int, frames: int) -> tuple[int, int]:
        return start * self.old // self.new - self.width, (start + frames - 1) * self.old // self.new + self.width + 2

    def span(self, audio: Float[Tensor, "*B _"], first: int, start: int, frames: int) -> Float[Tensor, "*B _"]:
        """`audio` is zero-padded at both ends; no output sample lies after its end."""
        frames = min(frames, ceil((first + audio.shape[-1]) * self.new / self.old) - start)
        blocks = [
            self._block(audio, first, start + done, min(self.block_frames, frames - done))
            for done in range(0, max(frames, 0), self.block_frames)
        ]
        return torch.cat(blocks, dim=-1) if blocks else audio[..., :0]

    @abstractmethod
    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        """Output samples start to start + frames, at most `block_frames`."""

    def _kernel(self, x: Tensor) -> Tensor:
        """The kernel at x zero crossings, in float64; 0 from the last zero crossing on."""
        window = torch.special.i0(BETA * (1 - (x / LOWPASS_WIDTH).square()).clamp_min(0).sqrt())
        top = torch.special.i0(torch.tensor(BETA, dtype=torch.float64))
        return torch.where(x.abs() < LOWPASS_WIDTH, torch.sinc(x) * window / top * self.cutoff, 0)


class Polyphase(WindowedSinc):
    """Weights for each output sample of a period, for ratios such as 44,100 to 8,192.

    The weights repeat after `new` output samples.  Each GROUP of them is one matrix product with its own matrix.
    """

    def __init__(self, old: int, new: int) -> None:
        super().__init__(old, new)
        groups, self.support = _groups(old, new, self.width)
        self.block_frames = max(1, PRODUCTS // (groups * self.support)) * new
        with torch.inference_mode(False):  # so that a gradient can pass through it later
            self.matrices = torch.empty(groups, self.support, GROUP)
            for group, matrix in enumerate(self.matrices):
                outputs = torch.arange(group * GROUP, (group + 1) * GROUP, dtype=torch.float64) * old / new
                inputs = torch.arange(self.support) + group * GROUP * old // new - self.width
                matrix.copy_(self._kernel((inputs[:, None] - outputs) * self.cutoff))

    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        begin, end = start // self.new, -(-(start + frames) // self.new)  # periods
        groups = torch.arange(len(self.matrices), device=audio.device)
        starts = (groups * GROUP * self.old).div(self.new, rounding_mode="floor")  # of each group, in input samples
        starts = starts[:, None] + torch.arange(end - begin, device=audio.device) * self.old  # (groups, periods)
        low = begin * self.old - self.width
        inputs = _padded_span(audio, first, low, low + (end - begin) * self.old + self.support)
        inputs = inputs.unfold(-1, self.support, 1)[..., starts, :]
        found = inputs @ self._like(self.matrices, audio)  # (..., groups, periods, GROUP)
        periods = found.transpose(-3, -2).flatten(-2)[..., : self.new].flatten(-2)
        return periods[..., start - begin * self.new :][..., :frames]


class Interpolator(WindowedSinc):
    """Weights interpolated from a table, for ratios such as 44,101 to 8,000.

    Memory does not depend on the rates; each sample at the higher rate takes about 135 products.
    """

    def __init__(self, old: int, new: int) -> None:
        super().__init__(old, new)
        self.block_frames = max(1, PRODUCTS // (2 * self.width + 2))
        self.table = self._kernel(torch.arange(LOWPASS_WIDTH * TABLE + 1, dtype=torch.float64) / TABLE)
        self.slopes = self.table.diff(append=self.table[-1:])

    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        low, high = self.reach(start, frames)
        device = torch.device("cpu") if audio.device.type == "mps" else audio.device  # MPS has no float64
        taps = torch.arange(-self.width, self.width + 2, device=device)
        positions = torch.arange(start, start + frames, device=device) * self.old
        whole = positions.div(self.new, rounding_mode="floor")
        fraction = (positions - whole * self.new).double() / self.new
        distance = (taps - fraction[:, None]).abs_().mul_(self.cutoff * TABLE).clamp_(max=LOWPASS_WIDTH * TABLE)
        entry = distance.int()  # (frames, taps)
        between = distance.sub_(entry).to(audio.dtype)
        slopes, table = (values.to(device, audio.dtype)[entry] for values in (self.slopes, self.table))
        weights = between.mul_(slopes).add_(table).to(audio)
        inputs = _padded_span(audio, first, low, high).unfold(-1, len(taps), 1)
        return torch.einsum("...nt,nt->...n", inputs[..., (whole - whole[0]).to(audio.device), :], weights)


def _padded_span(audio: Tensor, first: int, low: int, high: int) -> Tensor:
    """Samples low to high of a signal that starts with `audio` at sample `first`, zero-padded at both ends."""
    inside = audio[..., max(low - first, 0) : max(high - first, 0)]
    before = min(max(first - low, 0), high - low)
    return pad(inside, (before, high - low - before - inside.shape[-1]))


def _groups(old: int, new: int, width: int) -> tuple[int, int]:
    """The number of groups of output samples in a period, and of input samples of a group."""
    return -(-new // GROUP), (GROUP - 1) * old // new + 2 * width + 3


@lru_cache(maxsize=8)
def resampler(old: int, new: int) -> Resampler:
    """The fastest resampler whose coefficients fit into LARGEST_KERNEL."""
    common = gcd(old, new)
    old, new = old // common, new // common
    width = ceil(LOWPASS_WIDTH * max(1, old / new) / ROLLOFF)
    steps = max(1, 128 // old)
    coefficients = max(new * (old + 2 * width), steps * new * (old * steps + 2 * width))
    if coefficients <= LARGEST_KERNEL:
        return SingleMatrix(old, new)
    groups, support = _groups(old, new, width)
    return Polyphase(old, new) if groups * support * GROUP <= LARGEST_KERNEL else Interpolator(old, new)
