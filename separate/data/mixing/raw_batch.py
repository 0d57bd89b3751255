"""From what a loader gives to the batch that networks and losses see: changed and mixed on the device, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from separate.data.batch import Batch, total
from separate.data.example import Example
from separate.data.mixing.augmentations import Changes
from separate.data.mixing.effects import Stretch, equalise, reverberate, stretch
from separate.stft import STFT


@dataclass
class Drawn:
    """Examples of one length, as they are stored, and what is to be done to them (see `Changes`).

    sources: (B, S, C, T), or spectrograms (B, S, C, N, F) of `frames` samples; recorded: mixtures (B, C, ...), or None
    where all are the sums of their sources; is_sum: (B), which of them are.
    sample_rate in Hz; scale: what 1 is worth in a stored sample; rejected: excerpts that were drawn and not taken.
    """

    tracks: list[str]
    sources: Tensor
    recorded: Tensor | None
    is_sum: Tensor
    scale: float = 1.0
    frames: int | None = None
    rejected: int = 0
    sample_rate: int = 0
    stretches: list[Stretch] | None = None
    curves: Tensor | None = None
    responses: Tensor | None = None
    reference_spans: Tensor | None = None
    matrices: Tensor | None = None
    noise: Tensor | None = None
    snr: Tensor | None = None

    def pin_memory(self) -> Drawn:
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device, stft: STFT) -> Batch:
        """The batch on `device`, bound to the transform of the separator that will see it."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))._mix(stft)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Drawn:
        moved = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _mix(self, stft: STFT) -> Batch:
        sources = self._signals(self.sources)
        recorded = None if self.recorded is None else self._signals(self.recorded)
        sources, rest = self._stretched(sources, self._rest(sources, recorded))
        heard = sources
        if self.curves is not None:
            heard = equalise(heard, self.curves, self.sample_rate)
        references = heard
        if self.responses is not None:
            dry = heard
            references = heard = reverberate(dry, self.responses)
            if self.reference_spans is not None:
                references = reverberate(dry, _within(self.responses, self.reference_spans))
        if self.matrices is not None:
            alike = references is heard
            heard = _change(self.matrices, heard)
            references = heard if alike else _change(self.matrices, references)
        additive = recorded is None and self.noise is None and references is heard
        mixture = total(heard)
        if rest is not None:
            mixture = mixture + rest
        elif recorded is not None:
            mixture = torch.where(_along(self.is_sum, mixture), mixture, recorded)
        if self.noise is not None:
            mixture = mixture + self._noise_at_level(mixture)
        if self.frames is not None:
            return Batch.of_spectrograms(mixture, references, self.frames, self.tracks, stft)
        return Batch(mixture, references, self.tracks, stft, additive)

    def _rest(self, sources: Tensor, recorded: Tensor | None) -> Tensor | None:
        """What recorded mixtures hold beside their sources, (B, C, ...); None without them or if no source changes."""
        changes = (self.stretches, self.curves, self.responses, self.matrices)
        if recorded is None or all(change is None for change in changes):
            return None
        rest = recorded - total(sources)
        return torch.where(_along(self.is_sum, rest), torch.zeros_like(rest), rest)

    def _signals(self, stored: Tensor) -> Tensor:
        """Samples (..., C, T) in float32, or spectrograms (..., C, F, N) in complex64."""
        if self.frames is None:
            return stored.float() * self.scale if stored.dtype == torch.int16 else stored.float()
        return (stored if stored.is_complex() else torch.view_as_complex(stored.float())).mT

    def _stretched(self, sources: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both stretched together, so that their sum is the stretched mixture."""
        if self.stretches is None:
            return sources, rest
        signals = sources if rest is None else torch.cat([sources, rest.unsqueeze(1)], dim=1)
        pairs = zip(signals, self.stretches, strict=True)
        stretched = torch.stack([stretch(*pair, self.sample_rate) for pair in pairs])
        return (stretched, None) if rest is None else (stretched[:, :-1], stretched[:, -1])

    def _noise_at_level(self, mixture: Tensor) -> Tensor:
        """The noise, so loud that the mixture is `snr` dB louder; none where that is infinite."""
        assert self.noise is not None and self.snr is not None
        noise = self._signals(self.noise)
        levels = [x.abs().square().flatten(1).mean(dim=1) for x in (mixture, noise)]
        gain = torch.where(levels[1] > 0, (levels[0] / levels[1].clamp_min(1e-20)).sqrt(), 0.0) * 10 ** (-self.snr / 20)
        return _along(gain, noise) * noise


def collate(examples: Sequence[Example], changes: Sequence[Changes] | None = None, sample_rate: int = 0) -> Drawn:
    """Examples of one length, each signal copied once, to its place in the batch."""
    first = examples[0].sources
    dtype = torch.from_numpy(np.empty(0, first[0].dtype)).dtype
    sources = _room_for((len(examples), len(first), *first[0].shape), dtype)
    is_sum = torch.tensor([example.recorded is None for example in examples])
    recorded = None if is_sum.all() else torch.zeros_like(sources[:, 0])
    for number, example in enumerate(examples):
        for place, source in zip(sources[number].numpy(), example.sources, strict=True):
            place[:] = source
        if recorded is not None and example.recorded is not None:
            recorded[number].numpy()[:] = example.recorded
    drawn = Drawn(
        [example.track for example in examples],
        sources,
        recorded,
        is_sum,
        examples[0].scale,
        examples[0].frames,
        sum(example.rejected for example in examples),
        sample_rate,
    )
    if changes is None:
        return drawn
    stretches = [change.stretch for change in changes if change.stretch is not None]
    return replace(
        drawn,
        stretches=stretches or None,
        curves=_stack([change.curves for change in changes]),
        responses=_stack([change.responses for change in changes]),
        reference_spans=_stack([change.reference_spans for change in changes]),
        matrices=_stack([change.matrices for change in changes]),
        noise=_stack([change.noise for change in changes]),
        snr=torch.tensor([change.snr for change in changes]),
    )


def _room_for(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a loader's process one in shared memory, so that it is not copied there afterwards."""
    if torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))  # NumPy takes huge pages
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    there = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(there)) if there else None


def _along(values: Tensor, signals: Tensor) -> Tensor:
    """(B) as (B, 1, ...)."""
    return values.reshape(-1, *[1] * (signals.ndim - 1))


def _change(matrices: Tensor, sources: Tensor) -> Tensor:
    """New channels from old ones, (B, S, C, C), (B, S, C, ...) -> (B, S, C, ...)."""
    weights = matrices.reshape(*matrices.shape, *[1] * (sources.ndim - 3))
    return (weights * sources.unsqueeze(2)).sum(dim=3)


def _within(responses: Tensor, bounds: Tensor) -> Tensor:
    """Responses (..., L), zero before bounds[..., 0] and from bounds[..., 1] on; bounds: (..., 2) in samples."""
    numbers = torch.arange(responses.shape[-1], device=responses.device)
    return responses * ((numbers >= bounds[..., :1]) & (numbers < bounds[..., 1:]))
