"""Training on several processes of torchrun: the process group, and the communication of its ranks."""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from separate.device import choose_device
from separate.errors import MINUTES_TO_ANSWER, RANK_LOST, RankLost, UsageError

Value = TypeVar("Value")
OPENING = timedelta(hours=24)  # longest wait for the first process of a machine to open the data


class Ranks:
    """The processes of one training, each with its share of every batch.  Without torchrun there is one.

    rank: of this process, 0 to size - 1; local_rank: its rank within its machine; machine: the number of the machine.
    store: the key-value store of all processes.  All ranks call each method except `speaks`, `seed` and `device` in the
    same order; RankLost if another process ended or does not answer.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, machine: int = 0, store: Any | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.machine = machine
        self.store = store

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files, the log and the progress bar of the run."""
        return self.rank == 0

    @property
    def hides_bar(self) -> bool | None:
        """For tqdm's `disable`; None shows a bar on a terminal."""
        return None if self.first else True

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the ranks of tensors () on one device, in float32.  The host does not wait for a GPU."""
        if self.alone or not values:
            return dict(values)
        total = torch.stack([value.detach().float() for value in values.values()])
        with _answered():
            dist.all_reduce(total)
        return dict(zip(values, total.unbind(), strict=True))

    def totals(self, *numbers: float) -> list[float]:
        """The sums over the ranks of each number, in float64 on the CPU."""
        if self.alone:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        with _answered():
            dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.totals(flag)[0] > 0

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.totals(0.0)

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(found, value)
        return found

    def of_first(self, function: Callable[[], Value]) -> Value:
        """Call a function on the first rank only and return its result on all."""
        result: list[Any] = [function() if self.first else None]
        if not self.alone:
            with _answered():
                dist.broadcast_object_list(result, src=0)
        return result[0]

    @contextmanager
    def one_of_machine_first(self) -> Iterator[None]:
        """Run the block in one process of each machine first, so that the others find its files in the cache."""
        key = f"opened/{self.machine}"
        if self.store is not None and self.local_rank:
            with _answered():
                self.store.wait([key], OPENING)
        yield
        if self.store is not None and not self.local_rank:
            self.store.set(key, "yes")

    def device(self, name: str) -> torch.device:
        """The device of this rank, as from `choose_device`; each process of a machine has its own GPU."""
        if self.alone:
            return choose_device(name)
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = choose_device(name)
        if device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise UsageError(f"device={name} is one device for {self.size} processes; use device=cuda, or device=cpu")
        if (count := torch.cuda.device_count()) <= self.local_rank:
            raise UsageError(
                f"this machine has {count} GPU(s), fewer than processes; start them with torchrun "
                f"--nproc-per-node={count}, or use device=cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def seed(self, *numbers: int) -> None:
        """Seed the generators for dropout on all ranks except the first, which keeps its state."""
        if not self.first:
            (seed,) = np.random.SeedSequence([self.rank, *numbers]).generate_state(1, np.uint64)
            torch.manual_seed(int(seed >> np.uint64(1)))

    def speaks(self, message: str) -> bool:
        """Whether this rank prints an error: each error once, and the loss of a rank only without another error."""
        if self.store is None:
            return True
        try:
            if message == RANK_LOST and self.store.check(["failed"]):
                return False
            self.store.set("failed", "yes")
            return bool(self.store.add(hashlib.sha256(message.encode()).hexdigest(), 1) == 1)
        except RuntimeError:  # torchrun has ended, and the store with it
            return True

    def leave(self, code: int) -> None:
        """End the process group and the process, if there are several ranks.

        The process ends without the interpreter's own end: gloo has threads that may abort it then, and after a failure
        the communication may hang.
        """
        if self.alone:
            return
        if code == 0:
            dist.destroy_process_group()
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


ALONE = Ranks()
_current = ALONE


def current() -> Ranks:
    """The ranks after `join`; `ALONE` without it."""
    return _current


def join() -> Ranks:
    """Join the process group of torchrun, from the environment: gloo for the CPU, NCCL for GPUs."""
    global _current
    timeout = timedelta(minutes=MINUTES_TO_ANSWER)
    with _answered():
        shared, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun keeps its store over a restart, with the addresses of the earlier processes
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", shared)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    local_rank, machine = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "GROUP_RANK"))
    _current = Ranks(rank, size, local_rank, machine, dist.PrefixStore("separate", store))
    return _current


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(RANK_LOST) from error


def check_shares(ranks: Ranks, batch_size: int) -> None:
    """UsageError if a batch has fewer examples than ranks."""
    if batch_size < ranks.size:
        raise UsageError(
            f"batch_size={batch_size} leaves some of {ranks.size} processes without an example; it is the number of "
            f"examples of all processes together: use at least batch_size={ranks.size}, or fewer processes"
        )
