"""Trial steps that leave no trace in a training, with the seconds and the peak memory of their phases."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from separate.data.example import Examples
from separate.data.mixing.raw_batch import RawBatch
from separate.errors import SeparateError
from separate.process import release
from separate.training import deferred
from separate.training.finetuning.preparation import train_mode
from separate.training.progress import peak_memory
from separate.training.state import Objective, State, random_states, set_random_states
from separate.training.step import backward

AnyExamples = TypeVar("AnyExamples", bound=Examples)


@dataclass
class Phase:
    """seconds: in total; memory: the peak in bytes, of the process on a CPU and allocated on a CUDA device."""

    seconds: float = 0.0
    memory: int = 0


@dataclass
class Meter:
    """The phases that were measured, by name.  A phase that repeats adds its seconds."""

    device: torch.device
    phases: dict[str, Phase] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Generator[None, None, None]:
        _synchronise(self.device)
        reset_peak(self.device)
        begun = time.perf_counter()
        yield
        _synchronise(self.device)
        phase = self.phases.setdefault(name, Phase())
        phase.seconds += time.perf_counter() - begun
        phase.memory = max(phase.memory, peak(self.device))

    @property
    def total(self) -> Phase:
        return Phase(sum(one.seconds for one in self.phases.values()), max(one.memory for one in self.phases.values()))


def trial_step(
    state: State,
    objective: Objective,
    drawn: RawBatch,
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Forward and backward pass and an update, as `train_step` does them; call it within `untouched`."""
    train_mode(state.separator)
    with objective.precision.float32_products():
        metrics = backward(state, objective, drawn, phase)
    with phase("optimizer step"):
        if state.separator.device.type == "cpu":
            state.optimizer.step()
        else:
            deferred.step_if(metrics.finite, state.optimizer)
    state.scaler.update()


@contextmanager
def untouched(state: State) -> Iterator[None]:
    """Restore at the end, also after an error: weights, buffers, optimizer, gradient scaler and random states.

    Copies of the weights lie in the memory of the host, so that they take none of a GPU.  Tensors keep their places.
    """
    separator, optimizer = state.separator, state.optimizer
    tensors = list(chain(separator.parameters(), separator.buffers()))
    values = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    gradients = [parameter.grad for parameter in separator.parameters()]
    modes = {module: module.training for module in separator.modules()}
    groups = [{key: copy.deepcopy(one) for key, one in group.items() if key != "params"} for group in _groups(state)]
    moments = {parameter: copy.deepcopy(of_one) for parameter, of_one in optimizer.state.items()}
    scaler, generators = copy.deepcopy(state.scaler), random_states(separator.device)
    others = random.getstate(), np.random.get_state()  # a metric of the user may draw from them
    try:
        yield
    finally:
        _restore(tensors, values)
        for parameter, gradient in zip(separator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        for group, before in zip(_groups(state), groups, strict=True):
            group.update(before)
        optimizer.state.clear()
        optimizer.state.update(moments)
        vars(state.scaler).update(vars(scaler))
        set_random_states(generators, separator.device)
        random.setstate(others[0])
        np.random.set_state(others[1])


def _groups(state: State) -> list[dict[str, Any]]:
    return state.optimizer.param_groups


@torch.no_grad()
def _restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def still(examples: AnyExamples) -> AnyExamples:
    """The same examples, without downloads in the background: a thread must not run when worker processes start."""
    alike = copy.copy(examples)
    alike.prefetch = lambda order, position: None  # type: ignore[method-assign]
    return alike


def loaded(batch: RawBatch | SeparateError | None) -> RawBatch:
    """An item of `TrainingSteps` or `FixedBatches`, loaded in this process; raises the error in its place."""
    if isinstance(batch, SeparateError):
        raise batch
    assert batch is not None, "a batch of one process is never empty"
    return batch


def reset_peak(device: torch.device) -> None:
    """Start the measurement of the peak memory anew, where the system permits it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # else the peak is that since the start of the process
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak(device: torch.device) -> int:
    """The peak memory in bytes since `reset_peak`."""
    found = None if device.type == "cuda" else of_status("VmHWM")
    return peak_memory(device) if found is None else found


def resident() -> int:
    """The resident memory of this process in bytes; its peak where the system does not tell it."""
    found = of_status("VmRSS")
    return peak_memory(torch.device("cpu")) if found is None else found


def of_status(name: str) -> int | None:
    """A size of /proc/self/status in bytes; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def free_unused(device: torch.device) -> None:
    """Return memory that no tensor uses to the device or to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    release()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
