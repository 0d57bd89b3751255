"""Batches as a function of (seed, step): the same for any number of workers and after a resumed run."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from separate.data.example import Example, Examples
from separate.data.mixing.augmentation import Change
from separate.data.mixing.augmenter import Augmenter
from separate.data.mixing.raw_batch import RawBatch, collate
from separate.data.storage.parallel import end_with_parent
from separate.errors import SeparateError
from separate.interrupts import ignore_stops, signals_held
from separate.process import worker_count


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes loads: consecutive examples, almost equally many for each.

    rank: of the process, 0 to size - 1.  neighbours: also load the example before the first one, for `Loss.prepare`;
    the last of the batch comes before its first.
    """

    rank: int = 0
    size: int = 1
    neighbours: bool = False

    def of(self, numbers: range) -> list[int]:
        """The numbers of the examples of this share, after those of its context."""
        first, last = (len(numbers) * rank // self.size for rank in (self.rank, self.rank + 1))
        before = [numbers[first - 1]] if self.context(numbers) and first < last else []
        return [*before, *numbers[first:last]]

    def context(self, numbers: range) -> int:
        """The number of examples before the share: one or none."""
        return int(self.neighbours and self.size > 1 and len(numbers) > 1)

    def collate(self, numbers: range, examples: list[Example], **options: Any) -> RawBatch:
        """The raw batch of these examples, the share of the batch of `numbers`."""
        batch = collate(examples, **options)
        context = self.context(numbers)
        rejected = sum(example.rejected for example in examples[context:])
        return replace(batch, total=len(numbers), context=context, rejected=rejected)


WHOLE = Share()


class TrainingSteps(Dataset):
    """Training batches: item `step` is the batch of that step.  Each pass over the examples has its own order."""

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        augment: Augmenter | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.share = share
        self._pass = -1
        self._order = np.empty(0, int)

    def __getitem__(self, step: int) -> RawBatch | SeparateError:
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        try:
            own = self.share.of(numbers)
            examples = [self._draw(number) for number in own]
            position = self._position(numbers.stop)
            self.examples.prefetch(self._order, position)
            changes, rate = self._changes(own, examples), self.examples.sample_rate
            return self.share.collate(numbers, examples, changes=changes, sample_rate=rate)
        except SeparateError as error:
            return error  # `load` raises it, so that its message is not wrapped in a worker's traceback

    def _draw(self, number: int) -> Example:
        """Example `number`, counted from the start of the training."""
        position = self._position(number)
        return self.examples.draw(int(self._order[position]), np.random.default_rng([self.seed, 2, number]))

    def _position(self, number: int) -> int:
        """The position of an example in the order of its pass; sets `_order` to that order."""
        this_pass, position = divmod(number, len(self.examples))
        if this_pass != self._pass:
            self._pass = this_pass
            self._order = self.examples.order(np.random.default_rng([self.seed, 1, this_pass]))
        return position

    def _changes(self, numbers: list[int], examples: list[Example]) -> list[list[Change]] | None:
        if self.augment is None or not self.augment.active:
            return None
        return [
            self.augment.draw(np.random.default_rng([self.seed, 3, number]), example)
            for number, example in zip(numbers, examples, strict=True)
        ]


class FixedBatches(Dataset):
    """Validation batches: the examples in order, `batch_size` at a time; the last batch may be smaller.

    An item is None where the batch is too small for this share.
    """

    def __init__(self, examples: Examples, batch_size: int, share: Share = WHOLE) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.share = share

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, index: int) -> RawBatch | SeparateError | None:
        first = index * self.batch_size
        last = min(first + self.batch_size, len(self.examples))
        self.examples.prefetch(np.arange(len(self.examples)), last)
        try:
            numbers = range(first, last)
            examples = [self.examples.fixed(number) for number in self.share.of(numbers)]
            return self.share.collate(numbers, examples) if examples else None
        except SeparateError as error:
            return error


def load(dataset: Dataset, items: range, workers: int | str, pin: bool) -> Generator[RawBatch, None, None]:
    """These items of a data set in order, prefetched by worker processes.

    workers: the number of processes (0: load in this process), or auto, see `worker_count`.  pin: load into pinned
    memory, for a GPU.  Close the generator if you stop before its end, or the workers may not end.
    """
    options: dict[str, Any] = {}
    processes = worker_count(workers, gpu=pin)
    if processes:
        options["prefetch_factor"] = 4
        if sys.platform == "linux":  # a forked process shares the lists of files; Python 3.14 would copy them
            options["multiprocessing_context"] = "fork"
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=processes,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the global state, which dropout uses, stays as it is
        **options,
    )
    with signals_held():  # a worker must not run this process's handlers before it has its own
        batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, SeparateError):
                raise batch
            yield batch
    finally:
        del batches  # an exception would keep it and its workers alive, and they ignore the stop at exit


def _start_worker(worker: int) -> None:
    end_with_parent()
    ignore_stops()  # stops reach the whole process group, and the training process decides
