"""Networks with an embedding of each time-frequency bin: deep clustering, attractors, chimera."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from separate.clustering import Search, assign, kmeans
from separate.models.layers import (
    AnyLength,
    Masks,
    Recurrent,
    check_at_most,
    check_level,
    check_positive,
    choose,
    make_activation,
)
from separate.models.recurrent import MaskHead, RecurrentBody
from separate.models.representation import Representation, RepresentationOptions
from separate.numerics import without_autocast
from separate.shapes import Complex, Float
from separate.targets import audible

SOFT: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda scores: scores.softmax(-1), "sigmoid": torch.sigmoid}
MEMBERSHIPS = ("hard", *SOFT)


class Clusters(nn.Module):
    """Masks from embeddings: assign each bin to the nearest of S centres, or share it among them.

    For interchangeable sources, k-means finds the centres in the audible bins of the recording: those within `level`
    dB of the loudest.  For named sources, the centres are running means from training (the fixed attractors of Chen et
    al., 2017).
    membership: of a bin in the sources; hard (1 for the nearest centre), softmax (shares by similarity, with a sum of
    1) or sigmoid (of the similarity to each centre separately).
    starts: number of k-means starts, of which the best one is used.
    """

    centres: Tensor
    total: Callable[[Tensor], Tensor] | None = None  # sums over the processes of a training, None for a single one

    def __init__(
        self,
        sources: int,
        dimensions: int,
        interchangeable: bool,
        membership: str = "hard",
        level: float = -40.0,
        starts: int = 4,
    ) -> None:
        super().__init__()
        check_positive(starts=starts)
        check_at_most(1000, starts=starts)
        self.membership = choose(membership, {name: name for name in MEMBERSHIPS}, "membership")
        check_level(level)
        self.interchangeable = interchangeable
        self.level, self.starts = level, starts
        self.register_buffer("centres", torch.zeros(sources, dimensions))

    def forward(
        self, embeddings: Float[Tensor, "B F N D"], mixture: Complex[Tensor, "B C F N"]
    ) -> Float[Tensor, "B S C F N"]:
        """Masks (B, S, C, F, N), the same in all channels."""
        points = rearrange(embeddings.float(), "b f n d -> b (n f) d")
        if self.interchangeable:
            weights = rearrange(audible(mixture, self.level), "b f n -> b (n f)")
            centres = kmeans(points, len(self.centres), weights, Search(starts=self.starts))
        else:
            centres = self.centres.expand(len(points), -1, -1)
        if self.membership == "hard":
            shares = nn.functional.one_hot(assign(points, centres).long(), len(self.centres)).float()
        else:
            shares = SOFT[self.membership](points @ centres.mT)
        return _masks(shares, mixture)

    def ideal(
        self,
        embeddings: Float[Tensor, "B F N D"],
        mixture: Complex[Tensor, "B C F N"],
        assignments: Float[Tensor, "B S F N"],
    ) -> Float[Tensor, "B S C F N"]:
        """Differentiable masks from the attractors of the true sources.  assignments: share of each source in each bin.

        membership=hard uses softmax here, because hard masks have no gradient.
        """
        points = rearrange(embeddings.float(), "b f n d -> b (n f) d")
        weights = assignments * audible(mixture, self.level).unsqueeze(1)
        scores = similarity(points, rearrange(weights, "b s f n -> b (n f) s"))
        return _masks(SOFT.get(self.membership, SOFT["softmax"])(scores), mixture)

    @torch.no_grad()
    def observe(
        self,
        embeddings: Float[Tensor, "B F N D"],
        mixture: Complex[Tensor, "B C F N"],
        assignments: Float[Tensor, "B S F N"],
        momentum: float = 0.05,
    ) -> None:
        """Update the running centres of named sources with the attractors of a training batch.

        momentum: weight of the batch, 1 for a centre that is still 0.  The centre of a silent source stays.
        """
        points = rearrange(embeddings.float(), "b f n d -> 1 (b n f) d")
        weights = assignments * audible(mixture, self.level).unsqueeze(1)
        weights = rearrange(weights, "b s f n -> 1 (b n f) s")
        with without_autocast(points):
            of_batch = attractors(points, weights)[0]
        mass = weights.sum(dim=(0, 1))  # (S,)
        if self.total is not None:
            of_share, mass = of_batch * mass.unsqueeze(1), self.total(mass)
            of_batch = self.total(of_share) / mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(1)
        unset = self.centres.abs().sum(dim=1) == 0
        step = torch.where(unset, 1.0, momentum) * (mass > 0)
        self.centres.lerp_(of_batch, step.unsqueeze(1))


def _masks(shares: Tensor, mixture: Tensor) -> Tensor:
    """Shares (B, N F, S) -> masks (B, S, C, F, N)."""
    masks = rearrange(shares, "b (n f) s -> b s 1 f n", f=mixture.shape[2])
    return masks.expand(-1, -1, mixture.shape[1], -1, -1)


def attractors(points: Float[Tensor, "B P D"], weights: Float[Tensor, "B P S"]) -> Float[Tensor, "B S D"]:
    """Weighted mean of the embeddings of each source (Chen et al., 2017, eq. 3); 0 for a source without weight."""
    return _shares(weights).mT @ points


def similarity(points: Float[Tensor, "B P D"], weights: Float[Tensor, "B P S"]) -> Float[Tensor, "B P S"]:
    """Inner products of the embeddings and their attractors.

    The hand-written gradient needs only one product with the points and one tensor of their size.  Weights have no
    gradient.
    """
    with without_autocast(points):
        scores: Tensor = _Similarity.apply(points, _shares(weights))
    return scores


def _shares(weights: Tensor) -> Tensor:
    """Weights (B, P, S) divided by their sum for each source."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)


class _Similarity(torch.autograd.Function):
    """Z = V A' with A = W' V; for a gradient G of Z:  dA = G' V,  dV = G A + W dA = [G W] [A; dA]."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, shares: Tensor) -> Tensor:
        centres = shares.mT @ points
        ctx.save_for_backward(points, shares, centres)
        return points @ centres.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        points, shares, centres = ctx.saved_tensors
        both = torch.cat([centres, gradient.mT @ points], dim=1)  # (B, 2 S, D)
        return torch.cat([gradient, shares], dim=2) @ both, None


def unit_length(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x / |x| along the last dimension, in float32, and 0 for x = 0.

    It needs half as many memory passes as torch.nn.functional.normalize.
    """
    with without_autocast(x):
        unit: Tensor = _UnitLength.apply(x.float())
    return unit


class _UnitLength(torch.autograd.Function):
    """y = x / |x|;  for a gradient G of y:  dx = (G - y <G, y>) / |x|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-8).reciprocal_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y).unsqueeze(-1)
        return torch.addcmul(gradient, y, along, value=-1).mul_(inverse)


class EmbeddingHead(nn.Module):
    """A linear layer and an activation from the features of a frame to the embedding of each bin.

    With mel bands in the representation, the outputs of the bands are mapped to the bins before the activation.
    """

    def __init__(
        self,
        features: int,
        representation: Representation,
        dimensions: int,
        activation_name: str,
        unit_length: bool,
    ) -> None:
        super().__init__()
        check_positive(dimensions=dimensions)
        self.dimensions, self.unit_length = dimensions, unit_length
        self.linear = nn.Linear(features, representation.bands * dimensions)
        self.activation: Callable[[Tensor], Tensor] = make_activation(activation_name)

    def forward(self, x: Float[Tensor, "B N _"], representation: Representation) -> Float[Tensor, "B F N D"]:
        embeddings = rearrange(self.linear(x), "b n (f d) -> b f n d", d=self.dimensions)
        if representation.mel is not None:
            embeddings = torch.einsum("mf,bmnd->bfnd", representation.mel, embeddings)
        embeddings = self.activation(embeddings)
        return unit_length(embeddings) if self.unit_length else embeddings


class DeepClustering(AnyLength):
    """Embeddings of unit length, close to each other in bins that the same source dominates (Hershey et al., 2016).

    Channels share the embeddings.  `Clusters` makes the masks, without a gradient, so this network needs a loss of
    embeddings.
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.  With mels the embedding of a bin
    is the weighted mean of the embeddings of its bands.
    """

    provides: tuple[str, ...] = ("embeddings",)
    unit_length = True
    memberships: tuple[str, ...] = MEMBERSHIPS  # the first one is the default

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        interchangeable: bool,
        recurrent: str = "lstm",
        layers: int = 2,
        units: int = 600,
        bidirectional: bool = True,
        dropout: float = 0.0,
        dimensions: int = 40,
        activation: str = "tanh",
        membership: str | None = None,
        level: float = -40.0,
        starts: int = 4,
        representation: str = "db",
        floor: float = -80.0,
        normalisation: str = "batch",
        groups: int | None = None,
        mels: int | None = None,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        membership = choose(membership or self.memberships[0], {name: name for name in self.memberships}, "membership")
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, sample_rate)
        features = Representation(channels, bins, options)
        width = channels * features.bands
        self.body = RecurrentBody(features, Recurrent(recurrent, width, layers, units, bidirectional, dropout))
        self.input_level = self.body.input_level
        self.embeddings = EmbeddingHead(self.body.width, features, dimensions, activation, self.unit_length)
        self.clusters = Clusters(sources, dimensions, interchangeable, membership, level, starts)

    def forward(self, spectrogram: Complex[Tensor, "B C F N"]) -> dict[str, Float[Tensor, "B F N D"]]:
        """The head `embeddings`, (B, F, N, D)."""
        return {"embeddings": self.embeddings(self.body(spectrogram), self.body.representation)}


class Attractor(DeepClustering):
    """Deep attractor network (Chen et al., 2017): masks by the similarity of embeddings to centres.

    In training the centres are the attractors of the true sources, and the masks are differentiable, so every loss of
    masks or waveforms trains this network.  In evaluation `Clusters` finds the centres.

    The default has 600 units in each direction, the authors' code 300; see experiment=attractor_paper.
    """

    provides = ("embeddings", "masks")
    unit_length = False
    memberships = tuple(SOFT)  # those with a gradient
    trains_on_sources = True


class Chimera(AnyLength):
    """A recurrent body with a head for embeddings and one for masks (Luo et al., 2017; Wang et al., 2018, chimera++).

    Channels share the embeddings.  separates_by: the head that separates, masks or embeddings (with `Clusters`).
    representation, floor, normalisation, groups, mels: see `RepresentationOptions`.
    """

    provides = ("embeddings", "masks")

    def __init__(
        self,
        sources: int,
        channels: int,
        bins: int,
        interchangeable: bool,
        recurrent: str = "lstm",
        layers: int = 4,
        units: int = 600,
        bidirectional: bool = True,
        dropout: float = 0.3,
        dimensions: int = 20,
        embedding_activation: str = "sigmoid",
        activation: str = "sigmoid",
        separates_by: str = "masks",
        membership: str = "hard",
        level: float = -40.0,
        starts: int = 4,
        representation: str = "db",
        floor: float = -80.0,
        normalisation: str = "batch",
        groups: int | None = None,
        mels: int | None = None,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        options = RepresentationOptions(representation, floor, normalisation, groups, mels, sample_rate)
        features = Representation(channels, bins, options)
        width = channels * features.bands
        self.body = RecurrentBody(features, Recurrent(recurrent, width, layers, units, bidirectional, dropout))
        self.input_level = self.body.input_level
        self.separates_by = choose(separates_by, {"masks": "masks", "embeddings": "embeddings"}, "head")
        self.embeddings = EmbeddingHead(self.body.width, features, dimensions, embedding_activation, unit_length=True)
        self.masks = Masks(sources, channels, activation, complex_masks=False)
        self.mask_head = MaskHead(self.body.width, features.bands, self.masks)
        self.clusters = Clusters(sources, dimensions, interchangeable, membership, level, starts)

    def forward(
        self, spectrogram: Complex[Tensor, "B C F N"]
    ) -> dict[str, Float[Tensor, "B F N D"] | Float[Tensor, "B S C F N"]]:
        """The heads `embeddings`, (B, F, N, D), and `masks`, (B, S, C, F, N)."""
        x, representation = self.body(spectrogram), self.body.representation
        masks = self.masks(representation.to_bins(self.mask_head(x)))
        return {"embeddings": self.embeddings(x, representation), **masks}
