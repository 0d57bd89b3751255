"""What is scored: the estimates of a separator for the recordings of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from separate.data.batch import Batch
from separate.data.example import Examples
from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import Metric
from separate.evaluation.recordings import read_recording, separate_recording
from separate.separator import Separator


@dataclass(frozen=True)
class Task:
    """What to compute for each recording.  workers: the number of scoring processes, 0 for none."""

    metrics: Mapping[str, Metric]
    workers: int = 0


class Candidate(Protocol):
    """Estimates to score.  method: their name in the tables; interchangeable: whether the sources have no order."""

    method: str
    sources: list[str]
    interchangeable: bool

    def __len__(self) -> int:
        """The number of recordings."""
        ...

    def read(self, index: int) -> tuple[Batch, int]:
        """A recording as a batch of one, on the CPU, and its sample rate in Hz."""
        ...

    def estimate(self, index: int, batch: Batch) -> Tensor:
        """The estimates (1, M, C, T) of a recording, on the CPU; M may exceed the sources if interchangeable."""
        ...


@dataclass
class Model:
    """A separator and the recordings of a split.  chunk, overlap: in seconds.

    UsageError for sources that do not fit the separator.
    """

    separator: Separator
    examples: Examples
    chunk: float
    overlap: float
    method: str = "model"

    def __post_init__(self) -> None:
        self.sources = self.examples.sources
        self.interchangeable = self.separator.interchangeable
        own = self.separator.sources
        if not (len(own) >= len(self.sources) if self.interchangeable else own == self.sources):
            raise UsageError(
                f"the separator gives {', '.join(own)} and the data has {', '.join(self.sources)}; "
                f"set data.sources=[{','.join(own)}] or choose data with these"
            )

    def __len__(self) -> int:
        return self.examples.recordings

    def read(self, index: int) -> tuple[Batch, int]:
        return read_recording(self.examples, index, self.separator), self.separator.sample_rate

    def estimate(self, index: int, batch: Batch) -> Tensor:
        """SeparateError for estimates that are not finite."""
        estimates = separate_recording(self.separator, batch, self.chunk, self.overlap)
        if not estimates.isfinite().all():
            raise SeparateError(f"the network gives NaN or infinite samples for {batch.tracks[0]}; train it again")
        return estimates
