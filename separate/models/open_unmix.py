"""Open-Unmix: masks from recurrent layers, with one network for each source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import AnyLength, Recurrent, check_dropout, check_positive
from separate.models.representation import Representation, RepresentationOptions
from separate.shapes import Complex, Float
from separate.stft import mel_filterbank


class OpenUnmix(AnyLength):
    """Open-Unmix: one network for each source, in parallel (Stöter et al., 2019).

    Each has a learned shift and scale of the magnitudes up to `bandwidth`, a linear layer to `hidden` features, three
    LSTM layers with a skip around them, two linear layers to all bins, a learned scale and shift, and a ReLU.  Batch
    normalisation follows each linear layer.  bandwidth: in Hz, None for all bins; hidden: features of both directions
    together.
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.  mels: bands up to `bandwidth` at
    the input, and over all bins at the output, where they are mapped to the bins before the learned scale and shift.
    """

    provides = ("masks",)
    faster_in_bfloat16 = True  # on a CPU that has it

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        sample_rate: int,
        hidden: int = 512,
        layers: int = 3,
        recurrent: str = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.4,
        bandwidth: float | None = 16000.0,
        representation: str = "linear",
        floor: float = -80.0,
        normalisation: str = "learnable",
        groups: int | None = None,
        mels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(hidden=hidden)
        check_dropout(dropout)
        if bidirectional and hidden % 2:
            raise ValueError(f"hidden={hidden} must be even for two directions")
        kept = bins
        if bandwidth is not None:
            if bandwidth <= 0:
                raise ValueError(f"bandwidth={bandwidth} must be above 0 Hz, or null for all bins")
            kept = min(bins, int(bandwidth * 2 * (bins - 1) / sample_rate) + 1)
        self.input_level = "rms" if bidirectional else "none"  # a causal network cannot know the level of later samples
        rate = sample_rate * (kept - 1) / (bins - 1) if kept > 1 else sample_rate  # twice the highest frequency
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, rate)
        units = hidden // (1 + bidirectional)
        middle = partial(Recurrent, recurrent, hidden, layers, units, bidirectional, dropout)
        to_bins = None if mels is None else mel_filterbank(bins, sample_rate, mels).T.contiguous()  # (F, M)
        self.parts = nn.ModuleList(
            SourceNetwork(Representation(channels, kept, options), channels, bins, hidden, middle, to_bins)
            for _ in range(sources)
        )

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> dict[str, Float[Tensor, "B S C F N"]]:
        """The head `masks`, at least 0 and without an upper bound."""
        return {"masks": torch.stack([part(spectrogram) for part in self.parts], dim=1)}


class SourceNetwork(nn.Module):
    """The network of one source: complex spectrogram -> mask.

    representation: the input, of the bins up to the bandwidth; hidden: number of features; make_recurrent: returns new
    recurrent layers; to_bins: matrix from the output bands to all bins, None without mel bands.
    """

    to_bins: Tensor | None

    def __init__(
        self,
        representation: Representation,
        channels: int,
        bins: int,
        hidden: int,
        make_recurrent: Callable[[], Recurrent],
        to_bins: Float[Tensor, "F M"] | None = None,
    ) -> None:
        super().__init__()
        bands = bins if to_bins is None else to_bins.shape[1]
        self.representation = representation
        self.register_buffer("to_bins", to_bins, persistent=False)
        self.input = nn.Linear(channels * representation.bands, hidden, bias=False)
        self.input_norm = nn.BatchNorm1d(hidden)
        self.recurrent = make_recurrent()
        self.middle = nn.Linear(2 * hidden, hidden, bias=False)
        self.middle_norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, channels * bands, bias=False)
        self.output_norm = nn.BatchNorm1d(channels * bands)
        self.scale = nn.Parameter(torch.ones(bins))
        self.shift = nn.Parameter(torch.ones(bins))

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B C F N"]:
        batch, channels = spectrogram.shape[:2]
        features = self.representation(spectrogram[:, :, : self.representation.bins])
        x = rearrange(features, "b c f n -> (b n) (c f)")
        x = torch.tanh(self.input_norm(self.input(x)))
        x = rearrange(x, "(b n) h -> b n h", b=batch)
        x = rearrange(torch.cat([x, self.recurrent(x)], dim=-1), "b n h -> (b n) h")
        x = torch.relu(self.middle_norm(self.middle(x)))
        x = self.output_norm(self.output(x))
        x = rearrange(x, "(b n) (c f) -> b c n f", b=batch, c=channels)
        if self.to_bins is not None:
            x = x @ self.to_bins.mT
        return torch.relu(x * self.scale + self.shift).mT


NAMES = {  # openunmix's: ours
    "input_mean": "representation.normalise.shift",
    "input_scale": "representation.normalise.scale",
    "output_scale": "scale",
    "output_mean": "shift",
    "fc1": "input",
    "bn1": "input_norm",
    "lstm": "recurrent.layers",
    "fc2": "middle",
    "bn2": "middle_norm",
    "fc3": "output",
    "bn3": "output_norm",
}


def state_from_openunmix(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights for an `OpenUnmix`, from the state dicts of openunmix's networks in the order of the sources."""
    renamed = {}
    for number, state in enumerate(states):
        for name, value in state.items():
            first, dot, rest = name.partition(".")
            if first in NAMES:  # openunmix's states also hold an STFT window and rates
                renamed[f"parts.{number}.{NAMES[first]}{dot}{rest}"] = value
    return renamed
