"""Raw batches: stored examples with their augmentations; the device augments and mixes them into training batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from separate.data.batch import Batch, total
from separate.data.example import Example
from separate.data.mixing.augmentation import Change, Encoding, Signals, per_example
from separate.errors import UsageError
from separate.stft import STFT


@dataclass
class RawBatch:
    """Examples of one length in their stored encoding, and the augmentations to apply.

    sources: (B, S, C, T), or spectrograms (B, S, C, N, F).  recorded: mixtures (B, C, ...), or None if all are the sums
    of their sources.  is_sum: (B), whether each mixture is the sum.  sample_rate in Hz.  changes: the augmentations in
    order, with stacked parameters.  rejected: the number of excerpts that were drawn and rejected.
    total: the number of examples of the batch of which this is a share, None for a whole batch.  context: the number of
    first examples that serve only `Loss.prepare`.
    """

    tracks: list[str]
    sources: Tensor
    recorded: Tensor | None
    is_sum: Tensor
    sample_rate: int = 0
    encoding: Encoding = field(default_factory=Encoding)
    changes: list[Change] = field(default_factory=list)
    rejected: int = 0
    total: int | None = None
    context: int = 0

    def pin_memory(self) -> RawBatch:
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device, stft: STFT) -> Batch:
        """Augment and mix on `device`.  stft: the transform of the batch."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))._mix(stft)

    def _map(self, move: Callable[[Tensor], Tensor]) -> RawBatch:
        """A copy with `move` applied to all tensors."""

        def moved(values: dict[str, Any]) -> dict[str, Any]:
            return {name: move(value) if isinstance(value, Tensor) else value for name, value in values.items()}

        changes = [Change(kind, moved(dict(parameters))) for kind, parameters in self.changes]
        return replace(self, **moved({**vars(self), "changes": changes}))

    def _mix(self, stft: STFT) -> Batch:
        of_sources = [change for change in self.changes if not change.augmentation.after_mixing]
        of_mixture = [change for change in self.changes if change.augmentation.after_mixing]
        decode = self.encoding.decode
        sources, recorded = decode(self.sources), None if self.recorded is None else decode(self.recorded)
        rest = None  # of recorded mixtures
        if recorded is not None and of_sources:
            rest = torch.where(per_example(self.is_sum, recorded), 0.0, recorded - total(sources))
        signals = Signals(sources, sources, rest, self.sample_rate, self.encoding)
        for kind, parameters in of_sources:
            signals = kind.apply(signals, parameters)
        mixture = total(signals.sources)
        if signals.rest is not None:
            mixture = mixture + signals.rest
        elif recorded is not None:
            mixture = torch.where(per_example(self.is_sum, mixture), mixture, recorded)
        signals = replace(signals, mixture=mixture)
        for kind, parameters in of_mixture:
            signals = kind.apply(signals, parameters)
        assert signals.mixture is not None
        if (frames := self.encoding.frames) is not None:
            return Batch.of_spectrograms(signals.mixture, signals.references, frames, self.tracks, stft)
        additive = recorded is None and not of_mixture and signals.references is signals.sources
        return Batch(signals.mixture, signals.references, self.tracks, stft, additive)


def collate(
    examples: Sequence[Example], changes: Sequence[Sequence[Change]] | None = None, sample_rate: int = 0
) -> RawBatch:
    """Examples of one length as a batch; copies each signal once.  changes: of each example, in order."""
    first = examples[0].sources
    dtype = torch.from_numpy(np.empty(0, first[0].dtype)).dtype
    sources = _empty((len(examples), len(first), *first[0].shape), dtype)
    is_sum = torch.tensor([example.recorded is None for example in examples])
    recorded = None if is_sum.all() else torch.zeros_like(sources[:, 0])
    for number, example in enumerate(examples):
        for row, source in zip(sources[number].numpy(), example.sources, strict=True):
            row[:] = source
        if recorded is not None and example.recorded is not None:
            recorded[number].numpy()[:] = example.recorded
    return RawBatch(
        tracks=[example.track for example in examples],
        sources=sources,
        recorded=recorded,
        is_sum=is_sum,
        sample_rate=sample_rate,
        encoding=Encoding(examples[0].scale, examples[0].frames),
        changes=_stack(changes) if changes else [],
        rejected=sum(example.rejected for example in examples),
    )


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a worker in shared memory, which saves a copy."""
    if torch.utils.data.get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))  # NumPy takes huge pages
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]


def _stack(changes: Sequence[Sequence[Change]]) -> list[Change]:
    """The changes of all examples with their parameters stacked; UsageError if keys or shapes differ."""
    if len({tuple(change.augmentation for change in example) for example in changes}) > 1:
        raise UsageError("the draw() of an augmentation returns None for some examples; return parameters for each")
    stacked = []
    for same in zip(*changes, strict=True):
        kind, parameters = same[0].augmentation, [change.parameters for change in same]
        names = set().union(*parameters)
        try:
            stacked.append(Change(kind, {name: _stack_values([drawn[name] for drawn in parameters]) for name in names}))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"{kind.__module__}.{kind.__name__}.draw() returns other parameters for one example than for another "
                f"({error}); return the same keys and shapes for each"
            ) from None
    return stacked


def _stack_values(values: Sequence[Any]) -> Tensor | list[Any]:
    """Numbers and arrays as a tensor (B, ...), float64 as float32; other values as a list."""
    if not all(isinstance(value, (np.ndarray, np.generic, int, float)) for value in values):
        return list(values)
    stacked = np.stack([np.asarray(value) for value in values])
    return torch.from_numpy(stacked.astype(np.float32) if stacked.dtype == np.float64 else stacked)
