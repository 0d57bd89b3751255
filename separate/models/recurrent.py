"""Masks from recurrent layers over the frames of a spectrogram."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import AnyLength, Masks, Recurrent
from separate.models.representation import Representation, RepresentationOptions
from separate.shapes import Complex, Float, Inexact


class RecurrentBody(nn.Module):
    """A representation, and recurrent layers over its frames.  width: features of the output."""

    def __init__(self, representation: Representation, recurrent: Recurrent) -> None:
        super().__init__()
        self.representation = representation
        self.recurrent = recurrent
        self.width = recurrent.width
        # a causal network cannot know the level of later samples
        self.input_level = "rms" if recurrent.layers.bidirectional else "none"

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> Float[Tensor, "B N {self.width}"]:
        return self.recurrent(rearrange(self.representation(spectrogram), "b c f n -> b n (c f)"))


class MaskInference(AnyLength):
    """Recurrent layers over the frames of a spectrogram, and one mask for each source (Weninger et al., 2014).

    The representation, `layers` recurrent layers of `units` in each direction with dropout between them, and a linear
    layer to S x C masks.
    With bidirectional=False and a causal normalisation (batch, layer, learnable, whiten, none) the masks up to a frame
    do not depend on later frames.
    The default sizes are smaller than the papers'.  The default input is in decibels with batch normalisation; the
    papers use mel bands, normalised by the statistics of the training set.  See experiment=blstm_paper.
    complex_masks: masks with real and imaginary part (Williamson et al., 2016), each passed through the activation.
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.
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
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, sample_rate)
        features = Representation(channels, bins, options)
        width = channels * features.bands
        self.body = RecurrentBody(features, Recurrent(recurrent, width, layers, units, bidirectional, dropout))
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        self.input_level = self.body.input_level
        self.head = MaskHead(self.body.width, features.bands, self.masks)

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> dict[str, Inexact[Tensor, "B _ C F N"]]:
        """The head `masks` or `complex_masks`, (B, S, C, F, N)."""
        return self.masks(self.body.representation.to_bins(self.head(self.body(spectrogram))))


class MaskHead(nn.Module):
    """A linear layer from features to K masks of M bands."""

    def __init__(self, features: int, bands: int, masks: Masks) -> None:
        super().__init__()
        self.heads = masks.heads
        self.linear = nn.Linear(features, masks.heads * bands)

    def forward(self, x: Float[Tensor, "B N _"]) -> Float[Tensor, "B {self.heads} M N"]:
        return rearrange(self.linear(x), "b n (k f) -> b k f n", k=self.heads)
