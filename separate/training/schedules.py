"""Learning rate schedules: their interval, and the ones that torch lacks."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from separate.errors import UsageError

INTERVALS = ("step", "epoch")


class WarmupCosine(LRScheduler):
    """Raise the learning rate linearly to that of the optimizer, then lower it along half a cosine.

    total_steps: of the whole training.  warmup: share of these steps for the rise, whose last step has the full rate.
    end: rate of the last step, relative to the optimizer's.
    """

    interval = "step"

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup: float = 0.05, end: float = 0.01
    ) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup={warmup} is a share of all steps and must lie between 0 and 1")
        if not 0 <= end <= 1:
            raise ValueError(f"end={end} is a share of the learning rate and must lie between 0 and 1")
        self.total_steps, self.warmup_steps, self.end = total_steps, round(warmup * total_steps), end
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        factor = self.factor(self.last_epoch)
        return [factor * rate for rate in self.base_lrs]

    def factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, relative to the optimizer's."""
        done = step + 1
        if done < self.warmup_steps:
            return done / self.warmup_steps
        progress = (done - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class OneCycle(OneCycleLR):
    """Torch's OneCycleLR (Smith and Topin, 2018) whose peak is the learning rate of the optimizer.

    total_steps: of the whole training.  The options are torch's: pct_start is the share of the steps before the peak,
    the first rate is peak / div_factor, the last one peak / div_factor / final_div_factor.
    """

    interval = "step"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = False,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
    ) -> None:
        if min(div_factor, final_div_factor) <= 0:
            raise ValueError(f"div_factor={div_factor} and final_div_factor={final_div_factor} must be above 0")
        super().__init__(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            cycle_momentum=cycle_momentum,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
        )


def interval(schedule: Any) -> str:
    """step or epoch: the `interval` of a schedule, epoch if it names none."""
    return str(getattr(schedule, "interval", "epoch"))


def check_interval(schedule: Any) -> None:
    """UsageError for an unknown interval, or for steps of a schedule that needs the monitored metric."""
    name = type(schedule).__name__
    if interval(schedule) not in INTERVALS:
        raise UsageError(f"{name}.interval={interval(schedule)} must be step or epoch")
    if isinstance(schedule, ReduceLROnPlateau) and interval(schedule) == "step":
        raise UsageError(f"{name} follows the monitored metric, so its interval must be epoch")


def before_step(schedule: Any | None, step: int) -> None:
    """Set the learning rate of a training step, counted from 0, before its update.

    The schedule starts at step 0 and also counts steps that are not applied, so that its position is the step.
    Between two updates the optimizer keeps the rate of the earlier one, for the log and for the undoing of that update.
    """
    if schedule is None or interval(schedule) != "step" or step == 0:
        return
    if step > 1:
        schedule.step()
        return
    with warnings.catch_warnings():  # torch warns if the first step was not applied
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        schedule.step()


def after_epoch(schedule: Any | None, value: float, upwards: bool) -> None:
    """Set the learning rate of the next epoch.  value: of the monitored metric; upwards: whether larger is better."""
    if schedule is None or interval(schedule) != "epoch":
        return
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(value if math.isfinite(value) else -math.inf if upwards else math.inf)
    else:
        schedule.step()
