"""Mask inference with recurrent layers."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import Masks, Recurrent
from separate.models.representation import Representation


class RecurrentBody(nn.Module):
    """A representation and recurrent layers over its frames: (B, C, F, N) complex -> (B, N, width)."""

    def __init__(
        self,
        representation: Representation,
        channels: int,
        recurrent: str,
        layers: int,
        units: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.representation = representation
        self.recurrent = Recurrent(recurrent, channels * representation.bands, layers, units, bidirectional, dropout)
        self.width = self.recurrent.width
        self.input_level = "rms" if bidirectional else "none"  # a causal network cannot know the level of later samples

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.recurrent(rearrange(self.representation(spectrogram), "b c f n -> b n (c f)"))


class MaskInference(nn.Module):
    """Recurrent layers over the frames of a spectrogram, and one mask for each source (Weninger et al., 2014).

    The representation, `layers` x `units` (in each direction) with dropout between them, and a linear layer to S x C
    masks.  With bidirectional=False and a normalisation that is causal (batch, layer, learnable, whiten, none) the
    masks up to a frame do not depend on later ones.
    The default sizes are smaller than the papers'.  The input is in decibels with batch normalisation; the papers have
    mel bands normalised by the statistics of the training set.  See experiment=blstm_paper.
    complex_masks: each mask gets a real and an imaginary part (Williamson et al., 2016), both with the activation.
    mels: the network works on as many bands; what it says of them is projected back to the bins before the activation.
    """

    provides: tuple[str, ...] = ("masks",)
    faster_in_bfloat16 = True  # on a CPU that has it

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        sample_rate: int,
        recurrent: str = "lstm",
        layers: int = 2,
        units: int = 300,
        bidirectional: bool = True,
        dropout: float = 0.2,
        activation: str = "sigmoid",
        complex_masks: bool = False,
        representation: str = "db",
        floor: float = -80.0,
        normalisation: str = "batch",
        groups: int | None = None,
        mels: int | None = None,
    ) -> None:
        super().__init__()
        features = Representation(channels, bins, representation, floor, normalisation, mels, sample_rate, groups)
        self.body = RecurrentBody(features, channels, recurrent, layers, units, bidirectional, dropout)
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        self.input_level = self.body.input_level
        self.head = MaskHead(self.body.width, features.bands, self.masks)

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """(B, C, F, N) complex -> masks or complex_masks (B, S, C, F, N)."""
        return self.masks(self.body.representation.to_bins(self.head(self.body(spectrogram))))

    def valid_length(self, frames: int) -> int:
        """Every number of frames is computed as it is."""
        return frames


class MaskHead(nn.Module):
    """A linear layer from (B, N, features) to `masks` of the bands (B, K, M, N)."""

    def __init__(self, features: int, bands: int, masks: Masks) -> None:
        super().__init__()
        self.heads = masks.heads
        self.linear = nn.Linear(features, masks.heads * bands)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.linear(x), "b n (k f) -> b k f n", k=self.heads)
