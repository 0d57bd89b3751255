"""Profile of training steps: the time of each part of a step, the most expensive operators, a trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from separate.errors import UsageError

if TYPE_CHECKING:
    from separate.training.state import State, Training

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before the profile; in the last of them the profiler runs already
OPERATORS = 10
STAGES = (
    "waiting for data",
    "transfer and augmentation",
    "forward",
    "loss",
    "backward",
    "clipping",
    "optimizer",
)
_running: Profile | None = None
_nothing: AbstractContextManager[None] = nullcontext()


def stage(name: str) -> AbstractContextManager[None]:
    """The context of one of `STAGES`, a range of the trace.

    Without a profile it does nothing: `record_function` alone costs about 10 microseconds.
    """
    return _nothing if _running is None else _running.stage(name)


class Profile:
    """Profiles `steps` training steps after `WARM_UP`, writes FOLDER/trace.json and logs a table.

    On a GPU each stage ends when the device has finished it, so that its time counts; the step is slower then.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.path, self.steps, self.device = folder / "trace.json", steps, device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.done, self.begun = 0, 0.0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        plan = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._report, acc_events=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        with record_function(name):
            yield
            self._synchronise()
        self.seconds[name] += time.perf_counter() - begun

    def step(self) -> None:
        """Count a training step at its end."""
        self._synchronise()
        self.done += 1
        if self.done == WARM_UP + self.steps:
            self.total = time.perf_counter() - self.begun
        self.profiler.step()
        if self.done == WARM_UP:
            self.seconds = dict.fromkeys(STAGES, 0.0)
            self.begun = time.perf_counter()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _report(self, profiler: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.path))
        rows = [*self.stages(), "", *self.operators(profiler), "", f"trace: {self.path}"]
        log.info("profile of %d steps\n%s", self.steps, "\n".join(rows))

    def stages(self) -> list[str]:
        """The table of the stages: milliseconds and per cent of a step."""
        rest = self.total - sum(self.seconds.values())
        rows = [*self.seconds.items(), ("all else", rest), ("step", self.total)]
        head = f"{'stage':<28}{'ms':>10}{'% of step':>12}"
        return [head] + [
            f"{name:<28}{1000 * seconds / self.steps:>10.2f}{100 * seconds / self.total:>12.1f}"
            for name, seconds in rows
        ]

    def operators(self, profiler: Any) -> list[str]:
        """The table of the operators with the most time of their own, on the device of the training."""
        kind = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        events = [e for e in profiler.key_averages() if e.key not in STAGES and not e.key.startswith("ProfilerStep")]
        events.sort(key=lambda event: getattr(event, kind), reverse=True)
        head = f"{'operator':<48}{'ms':>10}{'% of step':>12}{'calls':>8}"
        return [head] + [
            f"{event.key[:46]:<48}{getattr(event, kind) / 1000 / self.steps:>10.2f}"
            f"{getattr(event, kind) / 1e4 / self.total:>12.1f}{event.count / self.steps:>8.0f}"
            for event in events[:OPERATORS]
        ]


@contextmanager
def profiling(state: State, training: Training) -> Iterator[Profile | None]:
    """Profile `trainer.profile` steps of the training in this context, in the first process; nothing for None."""
    global _running
    steps = training.options.profile
    if steps is None or not training.ranks.first:
        yield None
        return
    available = training.options.epochs * training.steps_per_epoch - state.step
    if available < WARM_UP + steps:
        raise UsageError(
            f"trainer.profile={steps} needs {WARM_UP + steps} steps with those of the warm-up and the run has "
            f"{available}; raise trainer.steps_per_epoch or trainer.epochs"
        )
    _running = Profile(training.folder / "profile", steps, state.separator.device)
    try:
        _running.profiler.start()
        yield _running
    finally:
        profiler, _running = _running.profiler, None
        profiler.stop()
