"""The interface of an augmentation: `draw` parameters in the data workers, `apply` them to a batch on its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from separate.data.example import Example
from separate.errors import UsageError

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class AudioFormat:
    """The format of a training example.  sample_rate in Hz; frames: its length in samples."""

    sample_rate: int
    channels: int
    frames: int


@dataclass(frozen=True)
class Encoding:
    """The encoding of stored signals.  scale: the value of one step of an int16 sample.

    frames: the length in samples of signals stored as spectrograms, None for samples.
    """

    scale: float = 1.0
    frames: int | None = None

    def decode(self, stored: Tensor) -> Tensor:
        """Samples (..., C, T) in float32, or spectrograms (..., C, F, N) in complex64."""
        if self.frames is None:
            return stored.float() * self.scale if stored.dtype == torch.int16 else stored.float()
        return (stored if stored.is_complex() else torch.view_as_complex(stored.float())).mT


@dataclass
class Signals:
    """Signals of a batch during augmentation and mixing: samples, or spectrograms with (C, F, N) in place of (C, T).

    sources: (B, S, C, T), the parts of the mixture.  references: (B, S, C, T), the targets of the network; the same
    tensor as `sources` unless an augmentation changes only one of them.  rest: (B, C, T), the part of recorded mixtures
    that is not in their sources, or None.  mixture: (B, C, T), or None before mixing.  sample_rate in Hz.
    """

    sources: Tensor
    references: Tensor
    rest: Tensor | None
    sample_rate: int
    encoding: Encoding = Encoding()
    mixture: Tensor | None = None

    def change(self, function: Callable[[Tensor], Tensor]) -> Signals:
        """Apply a function of (B, S, C, T) to the sources and to the references, once if they are the same."""
        sources = function(self.sources)
        references = sources if self.references is self.sources else function(self.references)
        return replace(self, sources=sources, references=references)


class Augmentation(ABC):
    """A random change of training examples.  A subclass implements `draw` and `apply`."""

    keys: ClassVar[tuple[str, ...]] = ()  # the options in `augment` that enable a built-in augmentation
    on_spectrograms: ClassVar[bool] = False  # whether `apply` also works with cache=spectrogram
    after_mixing: ClassVar[bool] = False  # whether it changes the mixture instead of the sources

    @abstractmethod
    def draw(self, rng: np.random.Generator, example: Example) -> Parameters | None:
        """The parameters for one example; None if the augmentation is off.  Runs in the data workers.

        Return the same keys and shapes for every example: numbers and arrays are stacked into tensors (B, ...), which
        go to the device, and float64 becomes float32.  Other values stay on the host, as a list of B.
        """

    @staticmethod
    @abstractmethod
    def apply(signals: Signals, parameters: Parameters) -> Signals:
        """Change a whole batch by the stacked parameters.

        Runs in the training process on the device of the batch, not in the process of `draw`, so it uses the parameters
        only.  Do not read values of tensors (`item()`, `if tensor`), or the host waits for the device.
        """


class Change(NamedTuple):
    """An augmentation with its parameters for one example, or stacked for a batch."""

    augmentation: type[Augmentation]
    parameters: Parameters


def between(bounds: Sequence[float], number: Any) -> Any:
    """Map numbers from [0, 1) to [min, max)."""
    low, high = bounds
    return low + (high - low) * number


def check_bounds(key: str, bounds: Sequence[float] | None, example: str = "[-6,6]") -> None:
    """UsageError unless `bounds` is [min, max] or None.  key: the option in `augment`."""
    if bounds is not None and not (len(bounds) == 2 and bounds[0] <= bounds[1]):
        raise UsageError(f"augment.{key}={list(bounds)} must be [min, max], e.g. {example}")


def per_example(values: Tensor, signals: Tensor) -> Tensor:
    """Reshape (B) to (B, 1, ...), to broadcast along signals (B, ...)."""
    return values.reshape(-1, *[1] * (signals.ndim - 1))
