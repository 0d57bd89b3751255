"""The training step: forward, backward, update; a non-finite step is undone."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from separate.data.mixing.raw_batch import RawBatch
from separate.errors import SeparateError
from separate.training import deferred, schedules
from separate.training.clipping import clip_gradients
from separate.training.data_parallel import BatchLoss, prepared, reduction
from separate.training.nonfinite import StoredBatch, report
from separate.training.profiling import stage
from separate.training.state import Objective, State, Training, random_states


def train_step(state: State, training: Training, drawn: RawBatch) -> dict[str, float]:
    """One step.  Returns metrics to add to the epoch's sums; only the count `skipped` for a non-finite step.

    A step with a non-finite loss or gradient changes neither parameters nor statistics nor the optimizer's state.

    On the CPU the metrics (loss, its parts, gradient norm) are read at once.  On other devices (`training.lags`) this
    step starts their copy to the host and returns the metrics of the step before it.  These it reads by `flush` after
    it has queued its own forward and backward passes; the host waits for the device only there.  The device decides
    whether a step is applied, see `deferred.step_if`.
    """
    separator, optimizer, scaler = state.separator, state.optimizer, state.scaler
    buffers = deferred.statistics(separator)
    buffers_before = deferred.copies(buffers)
    before: deferred.OptimizerState | None = None
    gained: dict[str, float] = {}
    random = random_states(separator.device)
    try:
        with training.precision.float32_products():
            metrics = backward(state, training, drawn)
        if training.lags:
            metrics.send()
            gained = flush(state, training, buffers_before)  # before this update: it may restore the optimizer's state
        schedules.before_step(state.scheduler, state.step)
        with stage("optimizer"):
            if training.lags:
                before = deferred.step_if(metrics.finite, optimizer)
                deferred.undo_unless(metrics.finite, buffers, buffers_before)
            elif metrics.finite:
                optimizer.step()
            else:
                deferred.undo_unless(metrics.finite, buffers, buffers_before)
                optimizer.zero_grad(set_to_none=True)
    except torch.OutOfMemoryError:
        raise out_of_memory(training, separator.device) from None
    scaler.update()
    state.pending = deferred.Pending(state.step, drawn, metrics, random, before)
    state.step += 1
    return gained if training.lags else flush(state, training)


def out_of_memory(training: Training, device: torch.device) -> SeparateError:
    """The error for a step that does not fit the memory, with the ways out."""
    seconds = training.train.frames / training.train.sample_rate
    half = " or set trainer.precision=bf16" if training.precision.name in ("fp32", "tf32") else ""
    return SeparateError(
        f"out of memory on {device} at batch_size={training.batch_size}, data.excerpt={seconds:g} and "
        f"trainer.accumulate={training.options.accumulate}; lower one of the first two, raise the last{half}; "
        f"batch_size=auto starts another run with the largest batch that fits"
    )


def backward(
    state: State,
    objective: Objective,
    drawn: RawBatch | StoredBatch,
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> deferred.StepMetrics:
    """Forward and backward pass: leaves unscaled, clipped gradients in the parameters and returns the metrics.

    phase: returns a context for `forward and loss` and one for `backward`, to measure them.

    The gradients and metrics of the parts of a batch (`trainer.accumulate`) add up to those of the whole batch.  Two
    exceptions: dropout draws other numbers, and batch normalisation takes its statistics from each part.
    """
    separator = state.separator
    device = separator.device
    if objective.anomalies:
        objective.anomalies.begin()
    with stage("transfer and augmentation"):
        own = prepared(objective.loss, drawn.to(device, separator.stft), drawn.context)
    ranks, compute = objective.ranks, objective.compute or BatchLoss(separator, objective.loss)
    total = drawn.total or len(own)
    batches = own.split(min(objective.options.accumulate, total // ranks.size))  # the same number of parts on each rank
    metrics: dict[str, torch.Tensor] = {}
    state.optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        share = len(batch) / total
        with reduction(compute, last=batch is batches[-1]):
            with phase("forward and loss"), objective.precision.autocast(device):
                loss, parts = compute(batch)
            with stage("backward"), phase("backward"):
                state.scaler.scale(ranks.size * share * loss).backward()  # the mean over ranks is the sum of shares
        for name, value in {"loss": loss, **parts}.items():
            metrics[name] = metrics.get(name, 0.0) + share * value.detach()
    with stage("clipping"):
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(separator.parameters(), objective.options, state.norms)
    return deferred.StepMetrics({"gradient_norm": norm, **ranks.sum(metrics)})


def flush(state: State, training: Training, statistics: Sequence[torch.Tensor] | None = None) -> dict[str, float]:
    """Read the metrics of the pending step, if there is one, and return them to add to the epoch's sums.

    Adds the weights to the averages if the step was applied: no later update has changed them.  statistics: the
    buffers after the pending step, if a later forward pass has changed them.
    """
    step, state.pending = state.pending, None
    if step is None:
        return {}
    found = step.metrics.read()
    if all(map(math.isfinite, found.values())):
        state.skipped = 0
        if training.options.clip == "auto":
            bisect.insort(state.norms, found["gradient_norm"])
        if state.averages.per_step:
            state.averages.after_step(deferred.named(state.separator, statistics))
        return {"steps": 1, **found}
    if step.before is not None:
        step.before.restore(state.optimizer)
    if state.scaler.is_enabled() and math.isfinite(found["loss"]):  # the scaler handles overflows of float16
        state.skipped = 0
    else:
        state.skipped += 1
        report(state, training, step, found)
        return {"skipped": 1}
    return {}
