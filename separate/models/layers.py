"""Layers and checks that several networks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models import lstm
from separate.shapes import Float, Inexact

Choice = TypeVar("Choice")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(dim=1),  # over the sources of (B, S, ...)
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "none": nn.Identity,
}
INNER_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **{name: ACTIVATIONS[name] for name in ("relu", "leaky_relu", "prelu", "tanh", "sigmoid", "none")},
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
PADDINGS = ("zeros", "reflect", "replicate")
RECURRENT: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def choose(name: str, table: Mapping[str, Choice], kind: str) -> Choice:
    """Look up a name in a table; ValueError for an unknown name, which lists the known ones.

    kind: what the name stands for, for the message: activation, pooling ...
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name}; choose from {', '.join(table)}")
    return table[name]


def make_activation(name: str) -> nn.Module:
    """Activation of an output: sigmoid, softmax (over dimension 1), tanh, relu, leaky_relu (slope 0.2), prelu or none.

    ValueError for another name.
    """
    return choose(name, ACTIVATIONS, "activation")()


def make_inner_activation(name: str) -> nn.Module:
    """Activation between two layers: relu, leaky_relu (slope 0.2), prelu, tanh, sigmoid, elu, gelu, silu or none.

    ValueError for another name.
    """
    return choose(name, INNER_ACTIVATIONS, "activation")()


def check_padding(padding: str, causal: bool = False) -> None:
    """ValueError for an unknown padding, and for reflection in a causal network."""
    choose(padding, dict.fromkeys(PADDINGS), "padding")
    if causal and padding == "reflect":
        raise ValueError(
            "padding=reflect puts later frames before the first one, which is not causal; use padding=zeros or "
            "replicate with causal=true"
        )


def pad(
    x: Inexact[Tensor, "*B N"], before: int, after: int, padding: str = "zeros"
) -> Inexact[Tensor, "*B {before}+N+{after}"]:
    """Pad the last dimension with zeros, a reflection (edge value not repeated) or copies of the edge value.

    N is at least 1; a short x is reflected at both ends repeatedly.
    """
    if padding == "zeros":
        return nn.functional.pad(x, (before, after))
    length = x.shape[-1]
    index = torch.arange(-before, length + after, device=x.device)
    if padding == "reflect":
        period = max(2 * (length - 1), 1)
        index = index % period
        index = torch.minimum(index, period - index)
    return x.index_select(-1, index.clamp(0, length - 1))


def check_positive(**sizes: float) -> None:
    """ValueError for a size below 1, with the argument's name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def check_at_most(most: int, **sizes: int) -> None:
    """ValueError for a size above `most`.  For sizes that cost time or memory without adding weights."""
    for name, size in sizes.items():
        if size > most:
            raise ValueError(f"{name}={size} must be at most {most}")


def check_dropout(dropout: float) -> None:
    """ValueError unless the probability lies in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must lie in [0, 1)")


def check_level(level: float) -> None:
    """ValueError unless the level, in dB re the loudest bin, is below 0."""
    if level >= 0:
        raise ValueError(f"level={level} must be below 0 dB, the loudest bin")


class AnyLength(nn.Module):
    """A network that takes any number of samples or frames without padding."""

    def valid_length(self, length: int) -> int:
        """The length itself."""
        return length


class PaddedConv1d(nn.Conv1d):
    """Convolution with an odd kernel that keeps the length, (B, F, N) -> (B, G, N).

    padding=None: no padding, so the output is kernel - 1 frames shorter.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: str | None) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2 if padding == "zeros" else 0)
        self.edges = padding

    def forward(self, x: Float[Tensor, "B _ _"]) -> Float[Tensor, "B _ _"]:
        margin = self.kernel_size[0] // 2
        return super().forward(x if self.edges in (None, "zeros") else pad(x, margin, margin, self.edges))


class Recurrent(nn.Module):
    """Recurrent layers over a sequence, (B, N, features) -> (B, N, width).

    kind: lstm, gru or rnn; features: of the input; units: in each direction; dropout: between the layers.
    width: features of the output, units times the number of directions.
    """

    def __init__(
        self,
        kind: str,
        features: int,
        layers: int,
        units: int,
        bidirectional: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(layers=layers, units=units)
        check_dropout(dropout)
        layer_class: Any = choose(kind, RECURRENT, "recurrent type")
        self.width = units * (1 + bidirectional)
        self.layers = layer_class(
            features,
            units,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,  # torch warns of dropout with one layer
        )

    def forward(self, x: Float[Tensor, "B N _"]) -> Float[Tensor, "B N _"]:
        if lstm.is_supported(self.layers, x):
            return lstm.bidirectional_lstm(self.layers, x)
        return self.layers(x)[0]


class Masks(nn.Module):
    """Turn the output of a network into masks with an activation.

    K = `heads` is S x C for real masks and 2 S C for complex masks, whose real and imaginary parts each pass through
    the activation.  ValueError for complex masks with an activation that is never negative.
    """

    SIGNED = ("tanh", "leaky_relu", "prelu", "none")

    def __init__(self, sources: int, channels: int, activation_name: str, complex_masks: bool) -> None:
        super().__init__()
        if complex_masks and activation_name not in self.SIGNED:
            raise ValueError(
                f"activation={activation_name} keeps complex masks from being negative; choose from "
                f"{', '.join(self.SIGNED)}"
            )
        self.sources, self.complex_masks = sources, complex_masks
        self.heads = sources * channels * (1 + complex_masks)
        self.provides = ("complex_masks",) if complex_masks else ("masks",)
        self.activation = make_activation(activation_name)

    def forward(self, x: Float[Tensor, "B K F N"]) -> dict[str, Inexact[Tensor, "B _ _ F N"]]:
        """The head `masks` or `complex_masks`, (B, S, C, F, N)."""
        if not self.complex_masks:
            return {"masks": self.activation(rearrange(x, "b (s c) f n -> b s c f n", s=self.sources))}
        parts = self.activation(rearrange(x, "b (s p c) f n -> b s p c f n", s=self.sources, p=2))
        real, imaginary = parts.float().unbind(dim=2)
        return {"complex_masks": torch.complex(real, imaginary)}


def decibels(magnitude: Float[Tensor, "*B"], floor: float) -> Float[Tensor, "*B"]:
    """Magnitudes in dB re 1, at least `floor` dB."""
    return 20 * torch.log10(magnitude.clamp_min(10 ** (floor / 20)))
