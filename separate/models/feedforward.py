"""Masks from feed-forward layers over the frames of a spectrogram."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from separate.models.layers import AnyLength, Masks, check_dropout, check_positive, make_inner_activation, pad
from separate.models.recurrent import MaskHead
from separate.models.representation import Representation, RepresentationOptions
from separate.shapes import Complex, Inexact


class FeedForward(AnyLength):
    """Linear layers over a frame and its neighbours, and one mask for each source (Huang et al., 2015).

    The input is a frame with `left_context` frames before it and `right_context` after it; at the ends the first and
    the last frame are repeated.  `layers` layers of `units` follow, each with an activation and dropout, then a linear
    layer to S x C masks.  With right_context=0 and a causal normalisation (batch, layer, learnable, whiten, none) the
    masks up to a frame do not depend on later frames.
    complex_masks: masks with a real and an imaginary part, each passed through the activation.
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.
    """

    provides: tuple[str, ...] = ("masks",)

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        sample_rate: int,
        layers: int = 3,
        units: int = 1024,
        left_context: int = 5,
        right_context: int = 5,
        inner_activation: str = "relu",
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
        check_positive(layers=layers, units=units)
        check_dropout(dropout)
        if min(left_context, right_context) < 0:
            raise ValueError(
                f"left_context={left_context} and right_context={right_context} must be at least 0 (frames)"
            )
        self.context = (left_context, right_context)
        self.input_level = "rms" if right_context else "none"  # a causal network cannot know the level of later samples
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, sample_rate)
        self.representation = Representation(channels, bins, options)
        features = channels * self.representation.bands
        # the linear layer over a frame and its context, as a convolution: the frames are not copied
        self.first = nn.Conv1d(features, units, left_context + 1 + right_context)
        self.start = nn.Sequential(make_inner_activation(inner_activation), nn.Dropout(dropout))
        self.rest = nn.Sequential()
        for _ in range(layers - 1):
            self.rest.extend([nn.Linear(units, units), make_inner_activation(inner_activation), nn.Dropout(dropout)])
        self.masks = Masks(sources, channels, activation, complex_masks)
        self.provides = self.masks.provides
        self.head = MaskHead(units, self.representation.bands, self.masks)

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> dict[str, Inexact[Tensor, "B _ C F N"]]:
        """The head `masks` or `complex_masks`, (B, S, C, F, N)."""
        x = rearrange(self.representation(spectrogram), "b c f n -> b (c f) n")
        x = self.start(self.first(pad(x, *self.context, "replicate")))
        x = self.rest(rearrange(x, "b h n -> b n h"))
        return self.masks(self.representation.to_bins(self.head(x)))
