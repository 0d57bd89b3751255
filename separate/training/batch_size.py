"""batch_size=auto: the largest power of two of which a real step fits the memory of the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from separate.data.loader import TrainingSteps
from separate.errors import SeparateError, UsageError
from separate.training.state import Objective, State
from separate.training.trial import (
    free_unused,
    loaded,
    peak,
    reset_peak,
    resident,
    still,
    trial_step,
    untouched,
)

log = logging.getLogger(__name__)

MOST = 4096
USED = 0.9  # share of the free memory that a step may take
GROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc")


def largest_batch(state: State, objective: Objective, steps: TrainingSteps) -> int:
    """The largest power of two, at most MOST and one pass over the examples, of which a step fits with head room.

    The steps leave no trace.  SeparateError if the smallest batch does not fit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("batch_size=auto measures one process only; with several processes write batch_size=NUMBER")
    device, parts = state.separator.device, objective.options.accumulate
    most, least = min(MOST, len(steps.examples)), 1 << (parts - 1).bit_length()
    if least > most:
        raise UsageError(
            f"trainer.accumulate={parts} splits a batch into more parts than batch_size=auto can choose "
            f"({most} examples at most); lower trainer.accumulate"
        )
    examples = still(steps.examples)

    def measured(size: int) -> int:
        return _peak_of_step(state, objective, TrainingSteps(examples, size, steps.seed, steps.augment))

    if device.type == "cuda":
        free_unused(device)
        limit = int(USED * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)))
        size, memory = search(measured, least, most, limit)
    else:
        size, memory = _on_host(measured, least, most)
    if not size:
        seconds = steps.examples.frames / steps.examples.sample_rate
        raise SeparateError(
            f"batch_size=auto: a step of {least} example(s) with data.excerpt={seconds:g} does not fit the memory of "
            f"{device}; lower data.excerpt or the size of the model, or set trainer.precision=bf16"
        )
    log.info("batch_size=auto: %d examples; a step takes %.3f GB", size, memory / 1e9)
    return size


def _on_host(measured: Callable[[int], int], least: int, most: int) -> tuple[int, int]:
    """`search` in the memory that is free for this process; the second measurement has no costs of the first step."""
    free_unused(torch.device("cpu"))
    limit = resident() + int(USED * available())
    try:
        measured(least)
    except torch.OutOfMemoryError:
        return 0, 0
    free_unused(torch.device("cpu"))
    return search(measured, least, most, limit, resident())


def search(
    measured: Callable[[int], int], least: int, most: int, limit: int, start: int | None = None
) -> tuple[int, int]:
    """The largest of `least`, 2 least, 4 least ... up to `most` of which a step fits, and its peak; 0 and 0 if none.

    measured: the peak in bytes of a step by batch size; raises torch.OutOfMemoryError.  limit: bytes for the peak.
    start: the memory without a step.  If given, a size is not tried whose peak, extrapolated linearly from the two
    sizes before, exceeds the limit, because a system without memory ends the process instead of raising an error.
    """
    best, before, size = (0, 0), start, least
    while size <= most:
        try:
            memory = measured(size)
        except torch.OutOfMemoryError:
            break
        if memory > limit:
            break
        if before is not None:
            growth = max(0, memory - before) * (2 if best[0] else 1)  # from half the size, or from no example at all
            if memory + growth > limit:
                best = (size, memory)
                break
            before = memory
        best = (size, memory)
        size *= 2
    return best


def _peak_of_step(state: State, objective: Objective, steps: TrainingSteps) -> int:
    """The peak memory of a step in bytes: reserved on a CUDA device, resident elsewhere."""
    device = state.separator.device
    free_unused(device)
    reset_peak(device)
    try:
        with untouched(state):
            trial_step(state, objective, loaded(steps[0]))
            return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak(device)
    finally:
        free_unused(device)
        reset_peak(device)


def available(groups: Path = GROUPS, process: Path = PROCESS) -> int:
    """Bytes that this process can still take: free in the system, and in its control groups (version 1 or 2).

    groups: the folder of the control groups; process: that of procfs.  Groups count with all that contain them.
    """
    found = [free for folder in _folders(groups, process) if (free := _left(folder)) is not None]
    text = _text(process / "meminfo")
    found += [1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:")]
    if not found and hasattr(os, "sysconf"):
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]  # macOS tells only the whole
    return max(0, min(found))


def _folders(groups: Path, process: Path) -> list[Path]:
    """The control groups of this process that limit memory, up to the root."""
    found = [groups, groups / "memory"]  # in a container the root is the group
    for line in _text(process / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        root = groups / "memory" if "memory" in controllers.split(",") else groups
        if controllers and root == groups:
            continue
        place = Path(path.lstrip("/"))
        found += [root / part for part in (place, *place.parents)]
    return found


def _left(folder: Path) -> int | None:
    """The limit of a control group less its use, without pages of files that the system can drop; None: no limit."""
    names = [("memory.max", "memory.current", "inactive_file")]
    names += [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    for most, now, droppable in names:
        limit, used = _text(folder / most).strip(), _text(folder / now).strip()
        if limit.isdigit() and used.isdigit():
            lines = [line.split() for line in _text(folder / "memory.stat").splitlines()]
            cached = next((int(line[1]) for line in lines if line[0] == droppable), 0)
            return int(limit) - max(0, int(used) - cached)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
