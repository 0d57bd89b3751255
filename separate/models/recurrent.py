"""Mask inference with recurrent layers."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import decibels, mask_activation


class MaskInference(nn.Module):
    """LSTM layers over the frames of a log spectrogram, and one mask for each source (Weninger et al., 2014).

    Magnitude in dB, batch normalisation of each bin, `layers` x `units` (in each direction), dropout between the
    layers, and a linear layer to S x C x F masks.  With bidirectional=False the masks up to a frame do not depend
    on later ones.  floor: dB re 1, the least magnitude that the network sees.
    """

    provides = ("masks",)

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        layers: int = 2,
        units: int = 300,
        bidirectional: bool = True,
        dropout: float = 0.2,
        activation: str = "sigmoid",
        floor: float = -80.0,
    ) -> None:
        super().__init__()
        if layers < 1 or units < 1 or not 0 <= dropout < 1:
            raise ValueError(f"layers={layers}, units={units}, dropout={dropout}: at least 1, at least 1, in [0, 1)")
        self.sources, self.channels, self.floor = sources, channels, floor
        self.normalise = nn.BatchNorm1d(channels * bins)
        self.recurrent = nn.LSTM(
            channels * bins,
            units,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.masks = nn.Linear(units * (1 + bidirectional), sources * channels * bins)
        self.activation = mask_activation(activation)

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """(B, C, F, N) complex -> masks (B, S, C, F, N)."""
        x = rearrange(decibels(spectrogram, self.floor), "b c f n -> b (c f) n")
        x = rearrange(self.normalise(x), "b f n -> b n f")
        x, _ = self.recurrent(x)  # (B, N, units)
        masks = rearrange(self.masks(x), "b n (s c f) -> b s c f n", s=self.sources, c=self.channels)
        return {"masks": self.activation(masks)}
