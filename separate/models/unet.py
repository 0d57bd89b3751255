"""U-Net on the spectrogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import (
    Masks,
    check_at_most,
    check_dropout,
    check_padding,
    check_positive,
    choose,
    make_inner_activation,
    pad,
)
from separate.models.representation import Representation
from separate.numerics import precise

DROPPED = 3  # decoder layers with dropout, the deepest ones


class Convolution(nn.Conv2d):
    """Convolution with an odd kernel that keeps the size, apart from its stride: (B, G, F, N) -> (B, H, F, N)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, padding: str) -> None:
        self.beyond = dilation * (kernel - 1) // 2
        self.how = padding
        super().__init__(inputs, outputs, kernel, stride, self.beyond if padding == "zeros" else 0, dilation)

    def forward(self, x: Tensor) -> Tensor:
        if self.how != "zeros":
            x = pad(pad(x, self.beyond, self.beyond, self.how).mT, self.beyond, self.beyond, self.how).mT
        return super().forward(x)


def _pooled(
    pool: Callable[[int], nn.Module], inputs: int, outputs: int, kernel: int, stride: int, dilation: int, padding: str
) -> nn.Module:
    return nn.Sequential(Convolution(inputs, outputs, kernel, 1, dilation, padding), pool(stride))


def _transposed(inputs: int, outputs: int, kernel: int, stride: int, padding: str) -> nn.Module:
    if kernel < stride:
        raise ValueError(f"kernel={kernel} must be at least stride={stride}, or transposed convolutions leave gaps")
    cut = (kernel - stride + 1) // 2
    extra = 2 * cut - (kernel - stride)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, cut, extra)


def _interpolated(mode: str, inputs: int, outputs: int, kernel: int, stride: int, padding: str) -> nn.Module:
    upsample = nn.Upsample(scale_factor=stride, mode=mode)
    return nn.Sequential(upsample, Convolution(inputs, outputs, kernel, 1, 1, padding))


DOWN: dict[str, Callable[..., nn.Module]] = {
    "stride": Convolution,
    "max": partial(_pooled, nn.MaxPool2d),
    "average": partial(_pooled, nn.AvgPool2d),
}
UP: dict[str, Callable[..., nn.Module]] = {
    "transposed": _transposed,
    "nearest": partial(_interpolated, "nearest"),
    "bilinear": partial(_interpolated, "bilinear"),
}


class Levels(nn.Module):
    """The way down and the way up: patches (B, channels, F, N) -> (B, outputs, F, N); see `UNet`."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        filters: Sequence[int],
        kernel: int,
        stride: int,
        dilation: int,
        down: Callable[..., nn.Module],
        up: Callable[..., nn.Module],
        padding: str,
        down_activation: str,
        up_activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(
                down(inputs, width, kernel, stride, dilation, padding),
                nn.BatchNorm2d(width),
                make_inner_activation(down_activation),
            )
            for inputs, width in pairwise([channels, *filters])
        )
        self.decoder = nn.ModuleList()
        widths = [*reversed(filters[:-1]), outputs]
        for level, (inputs, width) in enumerate(zip(reversed(filters), widths, strict=True)):
            convolution = up(inputs * (1 if level == 0 else 2), width, kernel, stride, padding)
            dropped = nn.Dropout2d(dropout if level < DROPPED else 0.0)
            rest = [nn.BatchNorm2d(width), make_inner_activation(up_activation), dropped]
            self.decoder.append(nn.Sequential(convolution, *(rest if level < len(filters) - 1 else [])))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        for layer in self.decoder:
            skip = skips.pop()
            x = layer(x if layer is self.decoder[0] else torch.cat([x, skip], dim=1))
        return x


class UNet(nn.Module):
    """Convolutions down, transposed convolutions up, and skips between them (Jansson et al., 2017).

    Each level has `filters` channels, a kernel x kernel convolution with a step of `stride` in frequency and time,
    batch normalisation and `down_activation`; the way up mirrors it with `up_activation`, and dropout in its three
    deepest levels.  The bins (or mel bands) are cut to a multiple of stride^levels; those above take the output of
    the last one kept.
    downsampling: stride, max or average (pooling); upsampling: transposed, nearest or bilinear; kernel: odd; padding:
    of all convolutions that are not transposed.  joint=False makes one network for each source, as in the paper.

    Two defaults differ from the paper on purpose: one network serves all sources, and magnitudes are not scaled to
    [0, 1] (normalisation=peak does that); see experiment=unet_paper.

    The frames come in patches of `patch` frames; patch=None takes all frames as one.  When separating, patches
    overlap by half and their masks are cross-faded, since the ends of a patch have context on one side only; the last
    one is padded with silence, which normalisation does not count.  In training, patches lie side by side, but the
    last one ends with the excerpt, so that batch normalisation sees no padding.  An excerpt shorter than a patch is
    covered by shorter patches.  One shorter than stride^levels frames, or with patch=None not a multiple of them, is
    extended by its reflection.
    """

    provides: tuple[str, ...] = ("masks",)
    faster_in_bfloat16 = True  # on a CPU that has it
    input_level = "rms"  # with input_level=auto

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
        padding: str = "zeros",
        down_activation: str = "leaky_relu",
        up_activation: str = "relu",
        dropout: float = 0.5,
        patch: int | None = 128,
        joint: bool = True,
        activation: str = "sigmoid",
        complex_masks: bool = False,
        representation: str = "linear",
        floor: float = -80.0,
        normalisation: str = "none",
        groups: int | None = None,
        mels: int | None = None,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(kernel=kernel, stride=stride, dilation=dilation, filters=min(filters, default=1))
        check_at_most(1024, dilation=dilation)
        check_dropout(dropout)
        check_padding(padding)
        self.step = stride ** len(filters)
        if not filters or kernel % 2 == 0:
            raise ValueError(f"filters={list(filters)} and kernel={kernel}: at least one level, and an odd kernel")
        self.representation = Representation(
            channels, bins, representation, floor, normalisation, mels, sample_rate, groups
        )
        self.bands = self.representation.bands
        if self.bands < self.step:
            have = f"mels={mels}" if mels else f"the STFT has {bins}"
            raise ValueError(f"{len(filters)} levels of stride {stride} need {self.step} bins and {have}")
        if patch is not None and (patch < self.step or patch % self.step):
            raise ValueError(f"patch={patch} must be a multiple of stride^levels = {self.step} frames")
        self.patch, self.kept = patch, self.bands - self.bands % self.step
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        down, up = choose(downsampling, DOWN, "downsampling"), choose(upsampling, UP, "upsampling")
        networks = 1 if joint else sources
        outputs = self.masks.heads // networks
        self.networks = nn.ModuleList(
            Levels(
                channels, outputs, filters, kernel, stride, dilation, down, up, padding,
                down_activation, up_activation, dropout,
            )
            for _ in range(networks)
        )  # fmt: skip

    def valid_length(self, frames: int) -> int:
        """The least number of frames, at least `frames`, that patches cover (without patches: whole strides)."""
        if self.patch is None:
            return -(-frames // self.step) * self.step
        hop = max(1, self.patch // 2)
        return self.patch + max(0, -(-(frames - self.patch) // hop)) * hop

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """(B, C, F, N) complex -> masks or complex_masks (B, S, C, F, N)."""
        frames = spectrogram.shape[-1]
        if self.training:
            step = width = self.training_width(frames)
            x = pad(self.representation(spectrogram), 0, max(0, width - frames), "reflect")
        else:
            covered = self.valid_length(frames)
            width = self.patch or covered
            step = max(1, width // 2)
            x = self.representation(spectrogram, silence=covered - frames)
        last = x.shape[-1] - width  # first frame of the last patch
        starts = (torch.arange(-(-last // step) + 1, device=x.device) * step).clamp_max(last)
        place = starts[:, None] + torch.arange(width, device=x.device)  # (m, n)
        x = rearrange(x[:, :, : self.kept, place], "b c f m n -> (b m) c f n")
        x = torch.cat([network(x) for network in self.networks], dim=1)
        x = nn.functional.pad(x, (0, 0, 0, self.bands - self.kept), mode="replicate")
        ((name, masks),) = self.masks(self.representation.to_bins(x)).items()
        masks = rearrange(masks, "(b m) s c f n -> b s c f m n", m=len(place))
        return {name: cross_fade(masks, place, last + width)[..., :frames]}

    def training_width(self, frames: int) -> int:
        """Frames of a patch in training: `patch`, or the whole steps in an excerpt of `frames` if these are fewer."""
        if self.patch is None or frames < self.step:
            return -(-frames // self.step) * self.step
        return min(self.patch, frames // self.step * self.step)


def cross_fade(patches: Tensor, place: Tensor, frames: int) -> Tensor:
    """Patches (..., m, n) at the frames `place` (m, n) -> (..., frames), overlapping with weights that sum to 1."""
    count, width = place.shape
    if count == 1:
        return patches.squeeze(-2)
    weight = torch.sin(torch.pi * (torch.arange(width, device=place.device) + 0.5) / width).square()
    weight = weight.to(precise(patches.real)).expand(count, width)
    flat = place.flatten()
    total = weight.new_zeros(frames).index_add(0, flat, weight.flatten())
    faded = (patches * (weight / total[place]).to(patches.real.dtype)).flatten(-2)
    return faded.new_zeros(*faded.shape[:-1], frames).index_add(-1, flat, faded)
