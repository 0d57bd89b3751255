"""From mixture to estimates: the path that training, validation, evaluation and inference share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from separate.data.batch import Batch
from separate.errors import UsageError
from separate.levels import level, rescaled, spectral_level
from separate.losses.permutation import match
from separate.models.layers import choose
from separate.overlap import Matching, blocks
from separate.resampling import resample
from separate.shapes import Complex, Float, Inexact
from separate.stft import STFT
from separate.targets import ibm

if TYPE_CHECKING:
    from separate.models.embedding import Clusters

CONSISTENCIES = ("none", "equal", "power")
INPUT_LEVELS = ("none", "rms")


@dataclass
class Separation:
    """The output of a network for a batch; masks by clustering and waveforms are computed on first use.

    heads: masks or complex_masks (B, S, C, F, N), embeddings (B, F, N, D), waveforms (B, S, C, T), by name.
    clusters: makes masks of embeddings.  by_embeddings: separate by the embeddings of a network that also has masks.
    training: take the attractors of the true sources for masks by clustering.  consistency, rescale: see `Levels`.
    """

    batch: Batch
    heads: Mapping[str, Tensor]
    clusters: Clusters | None = None
    by_embeddings: bool = False
    training: bool = False
    consistency: str = "none"
    rescale: bool = False

    @property
    def embeddings(self) -> Float[Tensor, "B F N D"]:
        return self.heads["embeddings"]

    @cached_property
    def masks(self) -> Inexact[Tensor, "B S C F N"] | None:
        """The masks of the network, real or complex, or by clustering; None for a waveform network."""
        own = self.heads.get("masks", self.heads.get("complex_masks"))
        if own is not None or self.clusters is None:
            return own
        return self.ideal_masks if self.training else self.clustered_masks

    @cached_property
    def clustered_masks(self) -> Float[Tensor, "B S C F N"]:
        """Masks by clustering the embeddings."""
        assert self.clusters is not None
        return self.clusters(self.embeddings, self.batch.spectrogram)

    @cached_property
    def ideal_masks(self) -> Float[Tensor, "B S C F N"]:
        """Masks by the attractors of the true sources, differentiable."""
        assert self.clusters is not None
        return self.clusters.ideal(self.embeddings, self.batch.spectrogram, owners(self.batch))

    @property
    def applied_masks(self) -> Inexact[Tensor, "B S C F N"] | None:
        """The masks of the estimates."""
        return self.clustered_masks if self.by_embeddings else self.masks

    @cached_property
    def estimates(self) -> Float[Tensor, "B S C T"]:
        """The estimates in float32: the network's waveforms, or the masked mixture through the inverse STFT."""
        with torch.autocast(next(iter(self.heads.values())).device.type, enabled=False):
            estimates = self._estimates()
            if self.rescale:
                estimates = rescaled(estimates, self.batch.mixture)
            if self.consistency == "none":
                return estimates
            return consistent(estimates, self.batch.mixture, self.consistency)

    def _estimates(self) -> Tensor:
        if "waveforms" in self.heads:
            return self.heads["waveforms"].float()
        masks = self.applied_masks
        assert masks is not None
        assert self.batch.stft is not None
        masked = (masks if masks.is_complex() else masks.float()) * self.batch.spectrogram.unsqueeze(1)
        return self.batch.stft.inverse(masked, self.batch.frames)


def owners(batch: Batch) -> Float[Tensor, "B S F N"]:
    """The source that dominates each bin, as 1 and 0, averaged over the channels."""
    return ibm(batch.source_spectrograms, batch.spectrogram).mean(dim=2)


def consistent(
    estimates: Float[Tensor, "B S C T"], mixture: Float[Tensor, "B C T"], how: str
) -> Float[Tensor, "B S C T"]:
    """Distribute the residual of the mixture among the estimates (Wisdom et al., 2019, eq. 7 and 9).

    how: equal (1 / S to each) or power (by their energies).
    """
    residual = (mixture - estimates.sum(dim=1)).unsqueeze(1)
    if how == "equal":
        return estimates + residual / estimates.shape[1]
    energy = estimates.square().mean(dim=(2, 3), keepdim=True) + 1e-8
    return estimates + residual * energy / energy.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Signals:
    """The signals of a separator.  sources: their names; sample_rate: in Hz; channels: of the network.

    interchangeable: the sources have no fixed order (two speakers), so chunks are matched to each other.
    """

    sources: Sequence[str]
    sample_rate: int
    channels: int = 1
    interchangeable: bool = False


@dataclass(frozen=True)
class Levels:
    """Normalisation of the input and levels of the estimates.

    consistency: none, equal or power: make the estimates sum to the mixture, see `consistent`.
    rescale: give each estimate its gain and polarity in the mixture, see `separate.levels.rescaled`.  In training,
    estimates are rescaled only before consistency, which depends on levels.
    input_level: none or rms: normalise each mixture (each chunk of a long recording) to an RMS of -20 dB for the
    network, and scale its waveforms back.
    """

    consistency: str = "none"
    rescale: bool = False
    input_level: str = "none"

    def __post_init__(self) -> None:
        choose(self.consistency, dict.fromkeys(CONSISTENCIES), "consistency")
        choose(self.input_level, dict.fromkeys(INPUT_LEVELS), "input_level")


UNCHANGED = Levels()


class Separator(nn.Module):
    """A network with its signal processing: STFT, masking, inverse STFT, resampling, channels, chunks.

    network: maps spectrograms (B, C, F, N) or, if it provides `waveforms`, mixtures (B, C, T) to its heads by name.
    """

    def __init__(self, network: nn.Module, stft: STFT, signals: Signals, levels: Levels = UNCHANGED) -> None:
        super().__init__()
        self.network: Any = network
        self.stft = stft
        self.sources = list(signals.sources)
        self.sample_rate = signals.sample_rate
        self.channels = signals.channels
        self.interchangeable = signals.interchangeable
        self.consistency = levels.consistency
        self.rescale = levels.rescale
        self.input_level = levels.input_level

    @property
    def device(self) -> torch.device:
        return self.stft.window.device

    def separate(self, batch: Batch) -> Separation:
        """Separate a batch with the sample rate, channels and STFT of the separator."""
        network = self.network
        if "waveforms" in network.provides:
            heads = self._waveforms(batch.mixture)
        else:
            heads = network(self.input_spectrogram(batch))
        clusters = network.clusters if "embeddings" in heads else None
        by_embeddings = getattr(network, "separates_by", "masks") == "embeddings"
        training = self.training and batch.sources.shape[1] > 0
        if clusters is not None and training and not self.interchangeable:
            clusters.observe(heads["embeddings"], batch.spectrogram, owners(batch))
        rescale = self.rescale and (not self.training or self.consistency != "none")
        return Separation(batch, heads, clusters, by_embeddings, training, self.consistency, rescale)

    def input_spectrogram(self, batch: Batch) -> Complex[Tensor, "B C F N"]:
        """The spectrograms of the mixtures, normalised for the network."""
        if self.input_level == "none":
            return batch.spectrogram
        return batch.spectrogram / spectral_level(batch.spectrogram, self.stft)

    def _waveforms(self, mixture: Tensor) -> dict[str, Tensor]:
        """The heads of a waveform network for mixtures (B, C, T)."""
        if self.input_level == "none":
            return dict(self.network(mixture))
        scale = level(mixture)
        heads = dict(self.network(mixture / scale))
        return {**heads, "waveforms": heads["waveforms"].float() * scale.unsqueeze(1)}

    @torch.inference_mode()
    def forward(
        self, waveform: Tensor | np.ndarray, sample_rate: int, chunk: float = 10.0, overlap: float = 2.0
    ) -> dict[str, Tensor]:
        """Separate a recording: (T,) or (C, T) float at any sample rate (Hz) -> {source: the same shape}, on the CPU.

        chunk and overlap in seconds: the recording is separated in chunks to limit the memory, see `separate.overlap`.
        Call `.eval()` first on a network that was not loaded from a checkpoint.
        """
        audio = torch.as_tensor(waveform, dtype=torch.float32)
        if audio.ndim not in (1, 2) or audio.numel() == 0:
            raise UsageError(f"a waveform of shape {tuple(audio.shape)} cannot be separated; give (T,) or (C, T)")
        signal = torch.atleast_2d(audio)
        stream = self.blocks(lambda start, stop: signal[:, start:stop], audio.shape[-1], sample_rate, chunk, overlap)
        estimates = torch.cat(list(stream), dim=-1)
        return {name: estimates[index].reshape(audio.shape) for index, name in enumerate(self.sources)}

    def blocks(
        self, read: Callable[[int, int], Tensor], frames: int, sample_rate: int, chunk: float, overlap: float
    ) -> Iterator[Tensor]:
        """Separate a recording in blocks, for constant memory: yields estimates (S, C, n) from start to end.

        read: maps (start, stop), in samples, to a span of the recording, (C, stop - start).
        """
        return blocks(
            lambda start, stop: self.span(read(start, stop), sample_rate),
            frames,
            sample_rate,
            chunk,
            overlap,
            Matching(self.interchangeable, self._polarities),
        )

    @property
    def _polarities(self) -> str:
        """The polarities of `separate.overlap.Matching`: rescaling sets one for each source or channel of a chunk."""
        if not self.rescale:
            return "kept"
        return "channel" if self.channels == 1 else "source"

    @torch.inference_mode()
    def span(self, audio: Float[Tensor, "C T"], sample_rate: int) -> Float[Tensor, "S C T"]:
        """Separate one chunk -> estimates on the CPU, with its rate and channels."""
        channels, length = audio.shape
        audio = resample(audio.to(self.device), sample_rate, self.sample_rate)
        if self.channels == 1:
            mixture = rearrange(audio, "c t -> c 1 t")  # each channel separately
        elif channels == 1:
            mixture = repeat(audio, "1 t -> 1 c t", c=self.channels)
        elif channels == self.channels:
            mixture = rearrange(audio, "c t -> 1 c t")
        else:
            raise UsageError(
                f"the input has {channels} channels and the separator {self.channels}; "
                f"convert the input to 1 or {self.channels}"
            )
        estimates = self.separate(Batch.of_mixture(mixture, self.stft)).estimates  # (B, S, C, T)
        if self.channels == 1:
            if self.interchangeable:  # one order for all channels, also for opposed phases
                estimates = torch.stack([match(estimates[0], channel, signed=False) for channel in estimates])
            estimates = rearrange(estimates, "c s 1 t -> s c t")
        else:
            estimates = estimates[0]
            if channels == 1:
                estimates = estimates.mean(dim=1, keepdim=True)
        estimates = resample(estimates, self.sample_rate, sample_rate)[..., :length]
        return nn.functional.pad(estimates, (0, length - estimates.shape[-1])).cpu()
