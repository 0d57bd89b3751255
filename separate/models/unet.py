"""U-Net on the spectrogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from separate.models.representation import Representation, RepresentationOptions
from separate.numerics import result_dtype
from separate.shapes import Complex, Float, Inexact, Int

DROPOUT_LEVELS = 3  # the deepest levels of the decoder have dropout


@dataclass(frozen=True)
class LevelOptions:
    """Options of the levels, see `UNet`; ValueError for values out of range."""

    filters: Sequence[int]
    kernel: int
    stride: int
    dilation: int
    downsampling: str
    upsampling: str
    padding: str
    down_activation: str
    up_activation: str
    dropout: float

    def __post_init__(self) -> None:
        sizes = {"kernel": self.kernel, "stride": self.stride, "dilation": self.dilation}
        check_positive(**sizes, filters=min(self.filters, default=1))
        check_at_most(1024, dilation=self.dilation)
        check_dropout(self.dropout)
        check_padding(self.padding)
        if not self.filters or self.kernel % 2 == 0:
            raise ValueError(
                f"filters={list(self.filters)} must have at least one level, and kernel={self.kernel} must be odd"
            )

    @property
    def step(self) -> int:
        """stride^levels; the numbers of bins and of frames must be multiples of it."""
        return self.stride ** len(self.filters)


class PaddedConv2d(nn.Conv2d):
    """Convolution with an odd kernel that keeps the size, apart from its stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, options: LevelOptions) -> None:
        kernel = options.kernel
        self.margin = dilation * (kernel - 1) // 2
        self.edges = options.padding
        super().__init__(inputs, outputs, kernel, stride, self.margin if self.edges == "zeros" else 0, dilation)

    def forward(self, x: Float[Tensor, "B _ F N"]) -> Float[Tensor, "B _ _ _"]:
        if self.edges != "zeros":
            x = pad(pad(x, self.margin, self.margin, self.edges).mT, self.margin, self.margin, self.edges).mT
        return super().forward(x)


def _strided(inputs: int, outputs: int, options: LevelOptions) -> nn.Module:
    return PaddedConv2d(inputs, outputs, options.stride, options.dilation, options)


def _pooled(pool: Callable[[int], nn.Module], inputs: int, outputs: int, options: LevelOptions) -> nn.Module:
    return nn.Sequential(PaddedConv2d(inputs, outputs, 1, options.dilation, options), pool(options.stride))


def _transposed(inputs: int, outputs: int, options: LevelOptions) -> nn.Module:
    kernel, stride = options.kernel, options.stride
    if kernel < stride:
        raise ValueError(f"kernel={kernel} must be at least stride={stride}, or transposed convolutions leave gaps")
    cut = (kernel - stride + 1) // 2
    extra = 2 * cut - (kernel - stride)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, cut, extra)


def _interpolated(mode: str, inputs: int, outputs: int, options: LevelOptions) -> nn.Module:
    upsample = nn.Upsample(scale_factor=options.stride, mode=mode)
    return nn.Sequential(upsample, PaddedConv2d(inputs, outputs, 1, 1, options))


DOWN: dict[str, Callable[[int, int, LevelOptions], nn.Module]] = {
    "stride": _strided,
    "max": partial(_pooled, nn.MaxPool2d),
    "average": partial(_pooled, nn.AvgPool2d),
}
UP: dict[str, Callable[[int, int, LevelOptions], nn.Module]] = {
    "transposed": _transposed,
    "nearest": partial(_interpolated, "nearest"),
    "bilinear": partial(_interpolated, "bilinear"),
}


class Levels(nn.Module):
    """Encoder, decoder and skips, for patches whose bins and frames are multiples of stride^levels; see `UNet`."""

    def __init__(self, channels: int, outputs: int, options: LevelOptions) -> None:
        super().__init__()
        filters = options.filters
        down = choose(options.downsampling, DOWN, "downsampling")
        up = choose(options.upsampling, UP, "upsampling")
        self.encoder = nn.ModuleList(
            nn.Sequential(
                down(inputs, width, options), nn.BatchNorm2d(width), make_inner_activation(options.down_activation)
            )
            for inputs, width in pairwise([channels, *filters])
        )
        self.decoder = nn.ModuleList()
        widths = [*reversed(filters[:-1]), outputs]
        for level, (inputs, width) in enumerate(zip(reversed(filters), widths, strict=True)):
            convolution = up(inputs * (1 if level == 0 else 2), width, options)
            dropped = nn.Dropout2d(options.dropout if level < DROPOUT_LEVELS else 0.0)
            rest = [nn.BatchNorm2d(width), make_inner_activation(options.up_activation), dropped]
            self.decoder.append(nn.Sequential(convolution, *(rest if level < len(filters) - 1 else [])))

    def forward(self, x: Float[Tensor, "B _ F N"]) -> Float[Tensor, "B _ F N"]:
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        for layer in self.decoder:
            skip = skips.pop()
            x = layer(x if layer is self.decoder[0] else torch.cat([x, skip], dim=1))
        return x


class UNet(nn.Module):
    """U-Net: an encoder of convolutions, a decoder of transposed convolutions, and skips (Jansson et al., 2017).

    Each level has `filters` channels: a kernel x kernel convolution with `stride` in frequency and time,
    batch normalisation and `down_activation`.  The decoder mirrors the encoder, with `up_activation` and with dropout
    in its three deepest levels.  The bins (or mel bands) are cut to a multiple of stride^levels; the mask of the
    highest remaining one also serves those above it.
    downsampling: stride, max or average (pooling); upsampling: transposed, nearest or bilinear; kernel: odd; padding:
    of all convolutions except the transposed ones.  joint=False: one network for each source, as in the paper.
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.

    Two defaults differ from the paper: one network serves all sources, and magnitudes are not scaled to [0, 1]
    (normalisation=peak does that); see experiment=unet_paper.

    The network sees patches of `patch` frames, or all frames with patch=None.  In evaluation, patches overlap by half
    and their masks are cross-faded, because the ends of a patch have context on one side only; the last patch is padded
    with silence, which normalisation ignores.  In training, patches are adjacent, but the last one ends with the
    excerpt, so that batch normalisation sees no padding.  An excerpt shorter than a patch is covered by shorter
    patches.  An excerpt shorter than stride^levels frames, or with patch=None not a multiple of them, is extended by
    its reflection.
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
        levels = LevelOptions(
            filters, kernel, stride, dilation, downsampling, upsampling, padding, down_activation, up_activation,
            dropout,
        )  # fmt: skip
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, sample_rate)
        self.representation = Representation(channels, bins, options)
        self.bands, self.step = self.representation.bands, levels.step
        if self.bands < self.step:
            have = f"mels={mels}" if mels else f"the STFT has {bins}"
            raise ValueError(f"{len(filters)} levels of stride {stride} need {self.step} bins and {have}")
        if patch is not None and (patch < self.step or patch % self.step):
            raise ValueError(f"patch={patch} must be a multiple of stride^levels = {self.step} frames")
        self.patch, self.kept = patch, self.bands - self.bands % self.step
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        networks = 1 if joint else sources
        outputs = self.masks.heads // networks
        self.networks = nn.ModuleList(Levels(channels, outputs, levels) for _ in range(networks))

    def valid_length(self, frames: int) -> int:
        """The smallest number of frames >= `frames` that patches cover (patch=None: a multiple of stride^levels)."""
        if self.patch is None:
            return -(-frames // self.step) * self.step
        hop = max(1, self.patch // 2)
        return self.patch + max(0, -(-(frames - self.patch) // hop)) * hop

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> dict[str, Inexact[Tensor, "B _ C F N"]]:
        """The head `masks` or `complex_masks`, (B, S, C, F, N)."""
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
        """Frames of a patch in training: a multiple of stride^levels, at most `patch` and, if possible, `frames`."""
        if self.patch is None or frames < self.step:
            return -(-frames // self.step) * self.step
        return min(self.patch, frames // self.step * self.step)


def cross_fade(
    patches: Inexact[Tensor, "*B m n"], place: Int[Tensor, "m n"], frames: int
) -> Inexact[Tensor, "*B {frames}"]:
    """Cross-fade m patches of n frames with weights that sum to 1.  place: the frame indices of each patch."""
    count, width = place.shape
    if count == 1:
        return patches.squeeze(-2)
    weight = torch.sin(torch.pi * (torch.arange(width, device=place.device) + 0.5) / width).square()
    weight = weight.to(result_dtype(patches.real)).expand(count, width)
    flat = place.flatten()
    total = weight.new_zeros(frames).index_add(0, flat, weight.flatten())
    faded = (patches * (weight / total[place]).to(patches.real.dtype)).flatten(-2)
    return faded.new_zeros(*faded.shape[:-1], frames).index_add(-1, flat, faded)
