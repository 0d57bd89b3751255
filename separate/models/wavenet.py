"""WaveNet for separation: gated dilated convolutions on the waveform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import (
    AnyLength,
    check_at_most,
    check_padding,
    check_positive,
    make_inner_activation,
    pad,
)
from separate.shapes import Float


class DilatedConv1d(nn.Conv1d):
    """Dilated convolution without bias that keeps the length.

    causal: an output sees no later samples.  Otherwise it sees as many after as before, or one more.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int = 1, causal: bool = False, padding: str = "zeros"
    ) -> None:
        span = dilation * (kernel - 1)
        before = span if causal else span // 2
        after = span - before
        even = before if before == after and padding == "zeros" else 0  # torch pads evenly without a copy
        super().__init__(inputs, outputs, kernel, dilation=dilation, padding=even, bias=False)
        self.uneven, self.edges = (before - even, after - even), padding

    def forward(self, x: Float[Tensor, "B _ T"]) -> Float[Tensor, "B _ T"]:
        return super().forward(pad(x, *self.uneven, self.edges) if any(self.uneven) else x)


@dataclass(frozen=True)
class GatedOptions:
    """Sizes and options of all gated layers, see `WaveNet`."""

    residual: int
    skip: int
    kernel: int
    causal: bool
    padding: str
    inner_activation: str


class GatedLayer(nn.Module):
    """A dilated convolution, gated by activation x sigmoid, and a 1x1 convolution to a residual and a skip path.

    last: no layer follows, so the input is returned unchanged.
    """

    def __init__(self, options: GatedOptions, dilation: int, last: bool) -> None:
        super().__init__()
        residual = options.residual
        self.widths = [0 if last else residual, options.skip]
        self.dilated = DilatedConv1d(residual, 2 * residual, options.kernel, dilation, options.causal, options.padding)
        self.activation = make_inner_activation(options.inner_activation)
        self.split = nn.Conv1d(residual, sum(self.widths), 1, bias=False)

    def forward(self, x: Float[Tensor, "B F T"]) -> tuple[Float[Tensor, "B F T"], Float[Tensor, "B _ T"]]:
        signal, gate = self.dilated(x).chunk(2, dim=1)
        change, skip = self.split(self.activation(signal) * torch.sigmoid(gate)).split(self.widths, dim=1)
        return (x + change if change.shape[1] else x), skip


class WaveNet(AnyLength):
    """A WaveNet that maps samples to samples (Rethage, Pons and Serra, 2018; Lluís, Pons and Serra, 2019).

    A convolution to `residual` channels; `stacks` times `layers` gated layers with dilations 1, 2, 4 ...; the sum of
    their `skip` channels passes through convolutions with `final` channels, each after `final_activation`, and through
    a 1x1 convolution to the samples, which are not bounded.  An output sees (kernel - 1) x stacks x (2^layers - 1)
    samples around itself and a few more.  kernel, final_kernel: taps; causal: no output depends on later samples;
    padding: of all layers; inner_activation: of the signal in a gated layer.
    All samples are estimated and count in the loss; the authors' loss covers only the middle 1,601 samples.
    The defaults are those of Lluís et al.; Rethage et al. have stacks=3, residual=128, skip=128.
    """

    provides = ("waveforms",)

    def __init__(
        self,
        sources: int,
        channels: int,
        layers: int = 10,
        stacks: int = 4,
        residual: int = 64,
        skip: int = 64,
        kernel: int = 3,
        final: Sequence[int] = (2048, 256),
        final_kernel: int = 3,
        causal: bool = False,
        padding: str = "zeros",
        inner_activation: str = "tanh",
        final_activation: str = "relu",
    ) -> None:
        super().__init__()
        check_padding(padding, causal)
        check_positive(layers=layers, stacks=stacks, residual=residual, skip=skip, kernel=kernel)
        check_at_most(16, layers=layers)  # the dilations double
        check_positive(final_kernel=final_kernel, **{f"final[{index}]": width for index, width in enumerate(final)})
        self.channels = channels
        self.input_level = "none" if causal else "rms"  # a causal network cannot know the level of later samples
        self.input = DilatedConv1d(channels, residual, kernel, causal=causal, padding=padding)
        options = GatedOptions(residual, skip, kernel, causal, padding, inner_activation)
        count = stacks * layers
        self.layers = nn.ModuleList(
            GatedLayer(options, 2 ** (index % layers), last=index == count - 1) for index in range(count)
        )
        widths = [skip, *final]
        self.final = nn.ModuleList(
            DilatedConv1d(inputs, outputs, final_kernel, causal=causal, padding=padding)
            for inputs, outputs in pairwise(widths)
        )
        self.final_activations = nn.ModuleList(make_inner_activation(final_activation) for _ in final)
        self.output = nn.Conv1d(widths[-1], sources * channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_uniform_(module.weight)  # as in the authors' code

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        x = self.input(mixture)
        total: Any = 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        x = total
        for activation, convolution in zip(self.final_activations, self.final, strict=True):
            x = convolution(activation(x))
        return {"waveforms": rearrange(self.output(x), "b (s c) t -> b s c t", c=self.channels)}
