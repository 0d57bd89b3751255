"""Learned filterbanks: an encoder of overlapping frames, and a decoder by overlap-add."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from separate.models.layers import check_positive, make_activation
from separate.shapes import Float


def frame(waveform: Float[Tensor, "B C T"], kernel: int, stride: int) -> Float[Tensor, "B C M {kernel}"]:
    """Frames of `kernel` samples, `stride` apart, zero-padded so that each sample is in kernel / stride frames.

    M = ceil(T / stride) + kernel / stride - 1.
    """
    before = kernel - stride
    padded = functional.pad(waveform, (before, before + -waveform.shape[-1] % stride))
    return padded.unfold(-1, kernel, stride)


def overlap_add(frames: Float[Tensor, "*B M kernel"], stride: int, length: int) -> Float[Tensor, "*B {length}"]:
    """Overlap-add frames that are `stride` samples apart, and keep `length` samples: the adjoint of `frame`."""
    count, kernel = frames.shape[-2:]
    total = frames.new_zeros(*frames.shape[:-2], count + kernel // stride - 1, stride)
    for part in range(kernel // stride):
        total[..., part : part + count, :] += frames[..., part * stride : (part + 1) * stride]
    before = kernel - stride
    return total.flatten(-2)[..., before : before + length]


class Filterbank(nn.Module):
    """Base class of encoder and decoder: filters of `kernel` samples with a hop of `stride` (default kernel / 2)."""

    def __init__(self, filters: int, channels: int, kernel: int, stride: int | None = None) -> None:
        super().__init__()
        check_positive(filters=filters, channels=channels, kernel=kernel)
        if stride is None:
            if kernel % 2:
                raise ValueError(f"kernel={kernel} samples must be even, as filters overlap by half; use {kernel + 1}")
            stride = kernel // 2
        if stride < 1 or kernel % stride:
            raise ValueError(f"stride={stride} must divide kernel={kernel} (samples)")
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(filters, channels, kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def valid_length(self, length: int) -> int:
        """The smallest number of samples >= length that is a multiple of the stride, so that all frames are full."""
        return math.ceil(length / self.stride) * self.stride


class Encoder(Filterbank):
    """Waveform to the outputs of N filters, each of which sees all channels.

    M = ceil(T / stride) + kernel / stride - 1 frames, for any T >= 1.  activation: see
    `separate.models.layers.make_activation`.
    """

    def __init__(
        self, filters: int, channels: int, kernel: int, stride: int | None = None, activation: str = "none"
    ) -> None:
        super().__init__(filters, channels, kernel, stride)
        self.activation = make_activation(activation)

    def forward(self, waveform: Float[Tensor, "B C T"]) -> Float[Tensor, "B M N"]:
        frames = rearrange(frame(waveform, self.kernel, self.stride), "b c m l -> b m (c l)")
        return self.activation(functional.linear(frames, self.weight.flatten(1)))


class Decoder(Filterbank):
    """Features to waveforms: each feature weights a filter that spans all C channels."""

    def forward(self, features: Float[Tensor, "B S M N"], length: int) -> Float[Tensor, "B S C {length}"]:
        frames = features @ self.weight.flatten(1)
        frames = rearrange(frames, "b s m (c l) -> b s c m l", l=self.kernel)
        return overlap_add(frames, self.stride, length)
