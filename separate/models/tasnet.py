"""TasNet: masks from recurrent layers on a gated, learned filterbank."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.filterbank import Decoder, Encoder
from separate.models.layers import Recurrent, check_dropout, check_positive, make_activation
from separate.shapes import Float

SILENCE = 1e-6  # added in quadrature to the norm of a segment: -120 dB re a norm of 1


class TasNet(nn.Module):
    """Luo & Mesgarani, 2018 ("TasNet: time-domain audio separation network for real-time ... speech separation").

    Segments of `kernel` samples without overlap (40, 5 ms at 8 kHz), each divided by its L2 norm; the estimates are
    multiplied by that norm; `filters` features from a gated encoder, relu(x U) sigmoid(x V) (eq. 4); layer
    normalisation of each segment; `layers` recurrent layers of `units` (in each direction) with an identity skip
    around each pair of layers except the first pair; masks by softmax over the sources; a linear decoder.
    recurrent: lstm, gru or rnn; dropout: between the layers; activation: of the masks.

    The encoder's filters see all channels of a mixture, the norm is taken over all channels, and the decoder returns
    the same number for each source.  With bidirectional=False the output of a segment does not depend on later
    segments: the algorithmic latency is one segment, `kernel` samples.
    """

    provides = ("waveforms",)

    def __init__(
        self,
        sources: int,
        channels: int,
        filters: int = 500,
        kernel: int = 40,
        recurrent: str = "lstm",
        layers: int = 4,
        units: int = 500,
        bidirectional: bool = True,
        dropout: float = 0.0,
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        check_positive(sources=sources, layers=layers)
        check_dropout(dropout)
        self.sources = sources
        self.encoder = Encoder(filters, channels, kernel, stride=kernel, activation="relu")
        self.gate = Encoder(filters, channels, kernel, stride=kernel, activation="sigmoid")
        self.norm = nn.LayerNorm(filters)
        self.pairs = nn.ModuleList()  # of layers, with a skip around each pair except the first
        width = filters
        for start in range(0, layers, 2):
            pair = Recurrent(recurrent, width, min(2, layers - start), units, bidirectional, dropout)
            self.pairs.append(pair)
            width = pair.width
        self.dropout = nn.Dropout(dropout)
        self.masks = nn.Linear(width, sources * filters)
        self.activation = make_activation(activation)
        self.decoder = Decoder(filters, channels, kernel, stride=kernel)

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        length, kernel = mixture.shape[-1], self.encoder.kernel
        mixture = nn.functional.pad(mixture, (0, self.valid_length(length) - length))
        segments = rearrange(mixture, "b c (m l) -> b c m l", l=kernel)
        level = (segments.square().sum((1, 3), keepdim=True) + SILENCE**2).sqrt()  # (B, 1, M, 1)
        unit = (segments / level).flatten(2)
        features = self.encoder(unit) * self.gate(unit)  # (B, M, N)
        x = self.norm(features)
        for index, pair in enumerate(self.pairs):
            x = pair(x) if index == 0 else x + pair(self.dropout(x))
        masks = self.activation(rearrange(self.masks(x), "b m (s n) -> b s m n", s=self.sources))
        estimates = self.decoder(masks * features.unsqueeze(1), mixture.shape[-1])  # (B, S, C, T)
        estimates = rearrange(estimates, "b s c (m l) -> b s c m l", l=kernel) * level.unsqueeze(1)
        return {"waveforms": estimates.flatten(3)[..., :length]}

    def valid_length(self, length: int) -> int:
        """The smallest multiple of `kernel` samples >= length."""
        return self.encoder.valid_length(length)
