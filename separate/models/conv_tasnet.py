"""Conv-TasNet: masks from a temporal convolutional network (TCN) on a learned filterbank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.filterbank import Decoder, Encoder
from separate.models.layers import check_positive, make_activation, make_inner_activation
from separate.models.norms import make_norm
from separate.models.tcn import TemporalOptions, TemporalStack
from separate.shapes import Float


class ConvTasNet(nn.Module):
    """Luo & Mesgarani, 2019 ("Conv-TasNet: surpassing ideal time-frequency magnitude masking"), with the paper's sizes.

    filters: N, of the encoder and the decoder; kernel: L, their length in samples, with a hop of L / 2; bottleneck: B,
    features between the blocks; hidden: H, features in a block; skip: Sc, features of the skip paths (0: none, the
    masks come from the last residual connection); convolution: P, taps of a depthwise convolution; layers: X, blocks
    in a repeat, with dilations 1 ... 2^(X - 1); repeats: R.  norm: global (gLN), cumulative (cLN) or batch.
    padding: of the depthwise convolutions, zeros, reflect or replicate; inner_activation: in the blocks and before the
    masks, prelu in the paper.
    activation: of the masks; encoder_activation: of the encoder.

    The encoder's filters see all channels of a mixture, and the decoder returns the same number for each source.
    causal=True with norm=cumulative (or batch, after training) has an algorithmic latency of one filter: the output
    at sample t depends on the input up to sample (floor(2 t / L) + 2) L / 2 - 1, at most L - 1 samples later.
    On the CPU in float32 the gradient of the blocks is hand-written: see `separate.models.tcn`.
    """

    provides = ("waveforms",)

    def __init__(
        self,
        sources: int,
        channels: int,
        filters: int = 512,
        kernel: int = 16,
        bottleneck: int = 128,
        hidden: int = 512,
        skip: int = 128,
        convolution: int = 3,
        layers: int = 8,
        repeats: int = 3,
        norm: str = "global",
        causal: bool = False,
        padding: str = "zeros",
        inner_activation: str = "prelu",
        activation: str = "sigmoid",
        encoder_activation: str = "none",
    ) -> None:
        super().__init__()
        check_positive(sources=sources, bottleneck=bottleneck)
        self.sources = sources
        self.encoder = Encoder(filters, channels, kernel, activation=encoder_activation)
        self.norm = make_norm(norm, filters, causal)
        self.bottleneck = nn.Linear(filters, bottleneck)
        options = TemporalOptions(bottleneck, hidden, skip, convolution, norm, causal, padding, inner_activation)
        self.stack = TemporalStack(options, layers, repeats)
        self.masks = FilterMasks(skip or bottleneck, sources, filters, inner_activation, activation)
        self.decoder = Decoder(filters, channels, kernel)

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        features = self.encoder(mixture)  # (B, M, N)
        x = self.norm(features.transpose(1, 2)).transpose(1, 2)
        x = self.stack(self.bottleneck(x).transpose(1, 2)).transpose(1, 2)  # (B, M, Sc)
        return {"waveforms": self.decoder(self.masks(x) * features.unsqueeze(1), mixture.shape[-1])}

    def valid_length(self, length: int) -> int:
        """The smallest multiple of kernel / 2 samples >= length."""
        return self.encoder.valid_length(length)


class FilterMasks(nn.Module):
    """An activation, a 1x1 convolution and an activation to the masks of N filters for each source."""

    def __init__(self, features: int, sources: int, filters: int, inner_activation: str, activation: str) -> None:
        super().__init__()
        self.sources = sources
        self.prelu = make_inner_activation(inner_activation)
        self.linear = nn.Linear(features, sources * filters)
        self.activation = make_activation(activation)

    def forward(self, x: Float[Tensor, "B M _"]) -> Float[Tensor, "B S M N"]:
        return self.activation(rearrange(self.linear(self.prelu(x)), "b m (s n) -> b s m n", s=self.sources))


BLOCK_NAMES = {  # torchaudio's: ours
    "conv_layers.0": "expand",
    "conv_layers.1": "expand_prelu",
    "conv_layers.2": "expand_norm",
    "conv_layers.3": "depthwise",
    "conv_layers.4": "depthwise_prelu",
    "conv_layers.5": "depthwise_norm",
}


def state_from_torchaudio(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `torchaudio.models.ConvTasNet` for `ConvTasNet.load_state_dict`.

    The `ConvTasNet` must have the same sizes, channels=1 and otherwise default options (activation="relu" for the
    weights of torchaudio's conv_tasnet_base).
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("mask_generator.")
        if name.startswith("conv_layers."):
            _, index, inner = name.split(".", 2)
            module, _, kind = inner.rpartition(".")
            if module in BLOCK_NAMES:
                ours[f"stack.blocks.{index}.{BLOCK_NAMES[module]}.{kind}"] = value
            elif module == "skip_out":  # residual and skip are one product here
                residual = state.get(f"mask_generator.conv_layers.{index}.res_out.{kind}")
                both = value if residual is None else torch.cat([residual, value])
                ours[f"stack.blocks.{index}.output.{kind}"] = both
        elif name.startswith(("input_conv.", "output_conv.")):
            module = "bottleneck" if name.startswith("input") else "masks.linear"
            ours[f"{module}.{name.rpartition('.')[2]}"] = value.flatten(1) if value.ndim > 1 else value
        else:
            ours[name.replace("input_norm", "norm").replace("output_prelu", "masks.prelu")] = value
    return ours
