"""U-Net on the spectrogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import Masks, check_at_most, check_dropout, check_positive, choose
from separate.models.representation import Representation

DROPPED = 3  # decoder layers with dropout, the deepest ones


def _strided(inputs: int, outputs: int, kernel: int, stride: int, dilation: int) -> nn.Module:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation)


def _pooled(
    pool: Callable[[int], nn.Module], inputs: int, outputs: int, kernel: int, stride: int, dilation: int
) -> nn.Module:
    return nn.Sequential(_strided(inputs, outputs, kernel, 1, dilation), pool(stride))


def _transposed(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    if kernel < stride:
        raise ValueError(f"kernel={kernel} must be at least stride={stride}, or transposed convolutions leave gaps")
    cut = (kernel - stride + 1) // 2
    extra = 2 * cut - (kernel - stride)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, cut, extra)


def _interpolated(mode: str, inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=stride, mode=mode), _strided(inputs, outputs, kernel, 1, 1))


DOWN: dict[str, Callable[..., nn.Module]] = {
    "stride": _strided,
    "max": partial(_pooled, nn.MaxPool2d),
    "average": partial(_pooled, nn.AvgPool2d),
}
UP: dict[str, Callable[..., nn.Module]] = {
    "transposed": _transposed,
    "nearest": partial(_interpolated, "nearest"),
    "bilinear": partial(_interpolated, "bilinear"),
}


class UNet(nn.Module):
    """Convolutions down, transposed convolutions up, and skips between them (Jansson et al., 2017).

    Each level has `filters` channels, a kernel x kernel convolution with a step of `stride` in frequency and time,
    batch normalisation and leaky ReLU; the way up mirrors it with ReLU, and dropout in its three deepest levels.  The
    bins are cut to a multiple of stride^levels (the highest take the mask of the last one kept), the frames come in
    patches of `patch` frames, the last one padded with silence; patch=None takes all frames as one.
    downsampling: stride, max or average (pooling); upsampling: transposed, nearest or bilinear; kernel: odd.
    """

    provides: tuple[str, ...] = ("masks",)
    input_level = "rms"  # of the mixtures that it is given, by default

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        filters: Sequence[int] = (16, 32, 64, 128, 256, 512),
        kernel: int = 5,
        stride: int = 2,
        dilation: int = 1,
        downsampling: str = "stride",
        upsampling: str = "transposed",
        dropout: float = 0.5,
        patch: int | None = 128,
        activation: str = "sigmoid",
        complex_masks: bool = False,
        representation: str = "linear",
        floor: float = -80.0,
        normalisation: str = "none",
    ) -> None:
        super().__init__()
        check_positive(kernel=kernel, stride=stride, dilation=dilation, filters=min(filters, default=1))
        check_at_most(1024, dilation=dilation)
        check_dropout(dropout)
        self.step = stride ** len(filters)
        if not filters or kernel % 2 == 0:
            raise ValueError(f"filters={list(filters)} and kernel={kernel}: at least one level, and an odd kernel")
        if bins < self.step:
            raise ValueError(f"{len(filters)} levels of stride {stride} need {self.step} bins and the STFT has {bins}")
        if patch is not None and (patch < self.step or patch % self.step):
            raise ValueError(f"patch={patch} must be a multiple of stride^levels = {self.step} frames")
        self.patch, self.kept = patch, bins - bins % self.step
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        self.representation = Representation(channels, bins, representation, floor, normalisation)
        down, up = choose(downsampling, DOWN, "downsampling"), choose(upsampling, UP, "upsampling")
        sizes = [channels, *filters]
        self.encoder = nn.ModuleList(
            nn.Sequential(down(a, b, kernel, stride, dilation), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
            for a, b in pairwise(sizes)
        )
        self.decoder = nn.ModuleList()
        outputs = [*reversed(filters[:-1]), self.masks.heads]
        for level, (inputs, output) in enumerate(zip(reversed(filters), outputs, strict=True)):
            convolution = up(inputs * (1 if level == 0 else 2), output, kernel, stride)
            rest = [nn.BatchNorm2d(output), nn.ReLU(), nn.Dropout2d(dropout if level < DROPPED else 0.0)]
            self.decoder.append(nn.Sequential(convolution, *(rest if level < len(filters) - 1 else [])))

    def valid_length(self, frames: int) -> int:
        """The least number of frames, at least `frames`, that is whole patches (without patches: whole strides)."""
        unit = self.patch or self.step
        return -(-frames // unit) * unit

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """(B, C, F, N) complex -> masks or complex_masks (B, S, C, F, N)."""
        bins, frames = spectrogram.shape[-2:]
        padded = nn.functional.pad(spectrogram, (0, self.valid_length(frames) - frames))
        x = self.representation(padded)[:, :, : self.kept]
        batch, width = len(x), self.patch or x.shape[-1]
        x = rearrange(x, "b c f (m n) -> (b m) c f n", n=width)
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        for layer in self.decoder:
            skip = skips.pop()
            x = layer(x if layer is self.decoder[0] else torch.cat([x, skip], dim=1))
        x = rearrange(x, "(b m) k f n -> b k f (m n)", b=batch)[..., :frames]
        x = nn.functional.pad(x, (0, 0, 0, bins - self.kept), mode="replicate")
        return self.masks(x)
