"""Demucs: convolutions on the waveform around recurrent layers."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import (
    PaddedConv1d,
    Recurrent,
    check_at_most,
    check_padding,
    check_positive,
    make_inner_activation,
    pad,
)
from separate.numerics import result_dtype, without_autocast
from separate.resampling import resample
from separate.shapes import Float

QUIET = 1e-5  # added to the standard deviation of the mixture, which is 0 in silence


class Demucs(nn.Module):
    """Demucs, the second version (Défossez, Usunier, Bottou and Bach, 2019).

    Encoder of `depth` levels: a convolution with `kernel` taps and `stride`, `inner_activation` (ReLU), and a 1x1
    convolution with a GLU; level n has `hidden` x growth^n channels.  Then bidirectional LSTM layers and a linear layer
    back to the same number of channels.
    The decoder mirrors the encoder.  Each level adds the encoder's output at that level, then has a convolution with
    `decoder_kernel` taps and a GLU, a transposed convolution and a ReLU (none at the end).
    resample: the network works at this multiple of the sample rate of the mixture (the paper: 2).
    normalise: standardise the mixture to mean 0 and standard deviation 1 over all channels and samples; each estimate
    is multiplied by the standard deviation of the mixture and gets an equal share of its mean.
    rescale: at initialisation, divide the weights and the bias of each convolution by sqrt(standard deviation of the
    weights / rescale); 0: no change.
    padding: zeros, reflect or replicate, for the decoder's convolutions, which keep the length, and for the mixture,
    which is padded to the next valid length.
    """

    provides = ("waveforms",)

    def __init__(
        self,
        sources: int,
        channels: int,
        hidden: int = 64,
        growth: float = 2.0,
        depth: int = 6,
        kernel: int = 8,
        stride: int = 4,
        decoder_kernel: int = 3,
        lstm_layers: int = 2,
        resample: int = 2,
        normalise: bool = True,
        rescale: float = 0.1,
        padding: str = "zeros",
        inner_activation: str = "relu",
    ) -> None:
        super().__init__()
        check_positive(hidden=hidden, depth=depth, kernel=kernel, stride=stride, decoder_kernel=decoder_kernel)
        check_positive(growth=growth, resample=resample)
        check_at_most(32, depth=depth, resample=resample)
        check_kernels(kernel, stride, decoder_kernel)
        if lstm_layers < 0 or rescale < 0:
            raise ValueError(f"lstm_layers={lstm_layers} and rescale={rescale} must be at least 0")
        check_padding(padding)
        self.sources, self.channels, self.padding = sources, channels, padding
        self.depth, self.kernel, self.stride = depth, kernel, stride
        self.resample, self.normalise = resample, normalise
        self.valid_length(1)  # ValueError for kernels and strides without a valid length

        widths = [channels, *(int(hidden * growth**level) for level in range(depth))]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, (above, width) in enumerate(pairwise(widths)):
            outputs = above if level else sources * channels
            after = inner_activation if level else "none"
            self.encoder.append(encoder_level(above, width, kernel, stride, inner_activation))
            self.decoder.append(
                nn.Sequential(
                    PaddedConv1d(width, 2 * width, decoder_kernel, padding),
                    nn.GLU(dim=1),
                    nn.ConvTranspose1d(width, outputs, kernel, stride),
                    make_inner_activation(after),
                )
            )
        self.centre = Centre(widths[-1], lstm_layers) if lstm_layers else None
        if rescale:
            for module in self.modules():
                if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                    rescale_(module, rescale)

    def valid_length(self, length: int) -> int:
        """The smallest number of samples >= length for which the convolutions of the encoder use every sample."""
        frames = length * self.resample
        for _ in range(self.depth):
            frames = max(1, ceil((frames - self.kernel) / self.stride) + 1)
        for count in range(frames, frames + self.resample):
            samples = count
            for _ in range(self.depth):
                samples = (samples - 1) * self.stride + self.kernel
            if samples % self.resample == 0:
                return samples // self.resample
        raise ValueError(
            f"no length that kernel={self.kernel} and stride={self.stride} use completely is a multiple of "
            f"resample={self.resample}; use resample=1, or a kernel that is a multiple of it"
        )

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        length = mixture.shape[-1]
        x = mixture
        if self.normalise:
            mean = x.mean(dim=(1, 2), keepdim=True)
            deviation = x.std(dim=(1, 2), keepdim=True, correction=0) + QUIET
            x = (x - mean) / deviation
        extra = self.valid_length(length) - length
        x = pad(x, extra // 2, extra - extra // 2, self.padding)
        x = resampled(x, 1, self.resample)
        skips = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        if self.centre is not None:
            x = self.centre(x)
        for decode in reversed(self.decoder):
            x = decode(x + skips.pop())
        x = resampled(x, self.resample, 1)[..., extra // 2 : extra // 2 + length]
        if self.normalise:
            x = x * deviation + mean / self.sources
        return {"waveforms": rearrange(x, "b (s c) t -> b s c t", c=self.channels)}


def check_kernels(kernel: int, stride: int, decoder_kernel: int) -> None:
    """ValueError for a kernel below its stride, and for an even decoder_kernel."""
    if kernel < stride:
        raise ValueError(f"kernel={kernel} must be at least stride={stride}, or samples would be left out")
    if decoder_kernel % 2 == 0:
        raise ValueError(f"decoder_kernel={decoder_kernel} must be odd; use {decoder_kernel + 1}")


def encoder_level(inputs: int, width: int, kernel: int, stride: int, inner_activation: str) -> nn.Module:
    """A strided convolution, an activation, and a 1x1 convolution with a GLU."""
    return nn.Sequential(
        nn.Conv1d(inputs, width, kernel, stride),
        make_inner_activation(inner_activation),
        nn.Conv1d(width, 2 * width, 1),
        nn.GLU(dim=1),
    )


class Centre(nn.Module):
    """Bidirectional LSTM layers and a linear layer back to the same number of features."""

    def __init__(self, features: int, layers: int) -> None:
        super().__init__()
        self.recurrent = Recurrent("lstm", features, layers, features, bidirectional=True)
        self.linear = nn.Linear(self.recurrent.width, features)

    def forward(self, x: Float[Tensor, "B F N"]) -> Float[Tensor, "B F N"]:
        return self.linear(self.recurrent(x.mT)).mT


def resampled(x: Float[Tensor, "*B _"], old: int, new: int) -> Float[Tensor, "*B _"]:
    """Resample (..., T) to (..., ceil(T new / old)), also under autocast in at least float32, as these are samples."""
    if old == new:
        return x
    with without_autocast(x):
        return resample(x.to(result_dtype(x)), old, new)


@torch.no_grad()
def rescale_(convolution: nn.Conv1d | nn.ConvTranspose1d, reference: float) -> None:
    """Divide weights and bias by sqrt(standard deviation of the weights / reference), in place."""
    factor = (reference / convolution.weight.std()).sqrt()
    convolution.weight *= factor
    if convolution.bias is not None:
        convolution.bias *= factor
