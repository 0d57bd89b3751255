"""From what a loader gives to the batch that networks and losses see: mixed on the device, all examples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from separate.batch import Batch, total
from separate.data.examples import Example
from separate.stft import STFT


@dataclass
class Drawn:
    """Examples of one length, as they are stored.

    sources: (B, S, C, T), or spectrograms (B, S, C, N, F) of `frames` samples; recorded: mixtures (B, C, ...), or None
    where all are the sums of their sources; is_sum: (B), which of them are.
    scale: what 1 is worth in a stored sample; matrices: (B, S, C, C), what `Augment` drew, or None.
    rejected: how many excerpts were drawn and not taken.
    """

    tracks: list[str]
    sources: Tensor
    recorded: Tensor | None
    is_sum: Tensor
    scale: float = 1.0
    frames: int | None = None
    matrices: Tensor | None = None
    rejected: int = 0

    def pin_memory(self) -> Drawn:
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device, stft: STFT) -> Batch:
        """The batch on `device`, bound to the transform of the separator that will see it."""
        drawn = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        sources, mixture = drawn._signals(drawn.sources), None
        if drawn.recorded is not None:
            mixture = drawn._signals(drawn.recorded)
            is_sum = drawn.is_sum.reshape(-1, *[1] * (mixture.ndim - 1))
            mixture = torch.where(is_sum, total(sources), mixture)
        if drawn.matrices is not None:
            changed = _change(drawn.matrices, sources)
            if mixture is not None:  # what is in it beside the sources stays as it is
                mixture = mixture + total(changed) - total(sources)
            sources = changed
        additive = mixture is None
        mixture = total(sources) if mixture is None else mixture
        if self.frames is not None:
            return Batch.of_spectrograms(mixture, sources, self.frames, self.tracks, stft)
        return Batch(mixture, sources, self.tracks, stft, additive)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Drawn:
        moved = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _signals(self, stored: Tensor) -> Tensor:
        """Samples (..., C, T) in float32, or spectrograms (..., C, F, N) in complex64."""
        if self.frames is None:
            return stored.float() * self.scale if stored.dtype == torch.int16 else stored.float()
        return (stored if stored.is_complex() else torch.view_as_complex(stored.float())).mT


def _change(matrices: Tensor, sources: Tensor) -> Tensor:
    """New channels from old ones, (B, S, C, C), (B, S, C, ...) -> (B, S, C, ...)."""
    weights = matrices.reshape(*matrices.shape, *[1] * (sources.ndim - 3))
    return (weights * sources.unsqueeze(2)).sum(dim=3)


def collate(examples: Sequence[Example], matrices: Sequence[np.ndarray] | None = None) -> Drawn:
    """Examples of one length, each signal copied once, to its place in the batch."""
    first = examples[0].sources
    dtype = torch.from_numpy(np.empty(0, first[0].dtype)).dtype
    sources = torch.empty(len(examples), len(first), *first[0].shape, dtype=dtype)
    is_sum = torch.tensor([example.recorded is None for example in examples])
    recorded = None if is_sum.all() else torch.zeros_like(sources[:, 0])
    for number, example in enumerate(examples):
        for place, source in zip(sources[number].numpy(), example.sources, strict=True):
            place[:] = source
        if recorded is not None and example.recorded is not None:
            recorded[number].numpy()[:] = example.recorded
    return Drawn(
        [example.track for example in examples],
        sources,
        recorded,
        is_sum,
        examples[0].scale,
        examples[0].frames,
        None if matrices is None else torch.from_numpy(np.stack(matrices)),
        sum(example.rejected for example in examples),
    )
