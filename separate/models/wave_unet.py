"""Wave-U-Net: a U-Net on the waveform."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import (
    PaddedConv1d,
    check_at_most,
    check_padding,
    check_positive,
    choose,
    make_activation,
    make_inner_activation,
    pad,
)
from separate.shapes import Float


class Interpolation(nn.Module):
    """Upsample by 2: insert a value between each two neighbours, and repeat the last value.

    The new value is w x(n) + (1 - w) x(n + 1) with w = 0.5, or w learned for each feature in (0, 1), initially 0.5
    (Stoller et al., 2018).
    """

    def __init__(self, features: int, learned: bool) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(features, 1)) if learned else None

    def forward(self, x: Float[Tensor, "B F N"]) -> Float[Tensor, "B F 2*N"]:
        following = torch.cat((x[..., 1:], x[..., -1:]), dim=-1)
        weight = 0.5 if self.logit is None else torch.sigmoid(self.logit).to(x.dtype)
        return torch.stack((x, torch.lerp(following, x, weight)), dim=-1).flatten(-2)


UPSAMPLING: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda features: Interpolation(features, learned=False),
    "learned": lambda features: Interpolation(features, learned=True),
    # three taps: each new value depends on its two neighbours, as in interpolation, and on all features
    "transposed": lambda features: nn.ConvTranspose1d(features, features, 3, stride=2, padding=1, output_padding=1),
}


class WaveUNet(nn.Module):
    """Wave-U-Net (Stoller, Ewert and Dixon, 2018): convolutions at decreasing and increasing sample rates, with skips.

    Level n has n x `filters` channels: a convolution with `down_kernel` taps, an activation, decimation by 2.
    The decoder: upsampling by 2, concatenation with the features of the level (skip), a convolution with `up_kernel`
    taps, an activation.  The mixture is concatenated before the last convolution (1 tap) and the `activation`.  The
    defaults are the paper's M1; its best network, M4, has context=True and difference=True.
    upsampling: linear, learned (interpolation with a weight for each feature) or transposed (convolution).
    context: the convolutions are not padded, so that all samples have full context; instead the network pads the
    mixture by `context_length` samples on each side.  The authors take these samples from the song around the excerpt.
    padding: zeros, reflect or replicate.  inner_activation: leaky_relu in the paper.
    difference: the last source is the mixture minus the others, so that the estimates sum to the mixture.
    """

    provides = ("waveforms",)
    faster_in_bfloat16 = True  # on a CPU that has it
    input_level = "rms"  # with input_level=auto

    def __init__(
        self,
        sources: int,
        channels: int,
        levels: int = 12,
        filters: int = 24,
        down_kernel: int = 15,
        up_kernel: int = 5,
        upsampling: str = "linear",
        context: bool = False,
        difference: bool = False,
        padding: str = "zeros",
        inner_activation: str = "leaky_relu",
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        check_positive(levels=levels, filters=filters, down_kernel=down_kernel, up_kernel=up_kernel)
        check_at_most(32, levels=levels)
        check_odd(down_kernel=down_kernel, up_kernel=up_kernel)
        if difference and sources == 1:
            raise ValueError("difference=true makes the only source the mixture itself; use difference=false")
        check_padding(padding)
        self.sources, self.channels, self.context, self.difference = sources, channels, context, difference
        self.padding = padding
        self.levels, self.up_kernel = levels, up_kernel
        upsample = choose(upsampling, UPSAMPLING, "upsampling")
        inner_padding = None if context else padding

        widths = [filters * level for level in range(1, levels + 2)]  # the last one is that of the middle
        self.down = nn.ModuleList(
            convolution(inputs, outputs, down_kernel, inner_padding, inner_activation)
            for inputs, outputs in zip([channels, *widths], widths[:-1], strict=False)
        )
        self.middle = convolution(widths[-2], widths[-1], down_kernel, inner_padding, inner_activation)
        self.upsample = nn.ModuleList(upsample(below) for below in reversed(widths[1:]))
        self.up = nn.ModuleList(
            convolution(level + below, level, up_kernel, inner_padding, inner_activation)
            for level, below in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True)
        )
        self.output = nn.Conv1d(filters + channels, (sources - difference) * channels, 1)
        self.activation = make_activation(activation)
        scale = 2**levels
        # half the difference between input and output length of the unpadded network, for all lengths
        self.context_length = (scale * (down_kernel - 1) + (scale - 1) * (down_kernel + up_kernel - 2)) // 2
        initialise(self)

    def valid_length(self, length: int) -> int:
        """The smallest number of samples >= length for which the output needs no cropping."""
        if not self.context:
            return length
        scale = 2**self.levels
        cut = (scale - 1) * self.up_kernel
        return -(-(length + cut) // scale) * scale - cut

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        length = mixture.shape[-1]
        x = mixture
        if self.context:
            after = self.context_length + self.valid_length(length) - length
            x = pad(mixture, self.context_length, after, self.padding)
        skips = [x]
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = x[..., ::2]
        x = self.middle(x)
        for upsample, up in zip(self.upsample, self.up, strict=True):
            x = upsample(x)
            if self.context:
                x = x[..., :-1]  # the last value has no neighbour to its right
            x = up(joined(skips.pop(), x))
        x = self.output(joined(skips.pop(), x))[..., :length]
        waveforms = self.activation(rearrange(x, "b (s c) t -> b s c t", c=self.channels))
        if self.difference:
            rest = mixture - waveforms.sum(dim=1)
            waveforms = torch.cat((waveforms, rest.unsqueeze(1)), dim=1)
        return {"waveforms": waveforms}


def convolution(inputs: int, outputs: int, kernel: int, padding: str | None, inner_activation: str) -> nn.Module:
    """A convolution and an activation.  padding: see `PaddedConv1d`."""
    return nn.Sequential(PaddedConv1d(inputs, outputs, kernel, padding), make_inner_activation(inner_activation))


def check_odd(**kernels: int) -> None:
    """ValueError for an even kernel, with the argument's name."""
    for name, kernel in kernels.items():
        if kernel % 2 == 0:
            raise ValueError(f"{name}={kernel} must be odd, or the levels would not align; use {kernel + 1}")


def initialise(network: nn.Module) -> None:
    """Initialise all convolutions as in the authors' code; torch's default makes the signal fade in the deep levels."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all have one


def joined(skip: Float[Tensor, "B F N"], x: Float[Tensor, "B G M"]) -> Float[Tensor, "B F+G _"]:
    """Concatenate min(N, M) samples: crop a longer skip to its middle, and a longer x to its beginning."""
    x = x[..., : skip.shape[-1]]
    start = (skip.shape[-1] - x.shape[-1]) // 2
    return torch.cat((skip[..., start : start + x.shape[-1]], x), dim=1)
