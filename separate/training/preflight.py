"""Preflight: each part of an epoch once before a new run, so that none fails after hours of training."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import suppress

import torch

from separate import checkpoint
from separate.config import EvalConfig
from separate.data.loader import FixedBatches, TrainingSteps
from separate.errors import UsageError
from separate.evaluation.recordings import read_recording, separate_recording
from separate.evaluation.scores import score
from separate.training.averages import RAW
from separate.training.state import State, Training, contents_of
from separate.training.step import out_of_memory
from separate.training.trial import Meter, Phase, free_unused, loaded, reset_peak, still, trial_step, untouched
from separate.training.validation import Tally, add_batch, check_monitor

log = logging.getLogger(__name__)


def preflight(state: State, training: Training) -> None:
    """One step, one validation batch and one checkpoint, which leave no trace; report their time and peak memory.

    With `trainer.compile` a second step follows, so that compilation shows.  Batches are loaded in this process.
    SeparateError for what would stop the run at its first validation.
    """
    device = state.separator.device
    check_monitor(training)
    meter = Meter(device)
    try:
        with untouched(state):
            second = _train(state, training, meter)
            with meter("validation"), torch.inference_mode():
                _validate(state, training)
            with meter("checkpoint"):
                _write(state, training)
    except torch.OutOfMemoryError:
        raise out_of_memory(training, device) from None
    finally:
        free_unused(device)
        reset_peak(device)
    if training.options.preflight == "only":
        print(table(meter, second), flush=True)
        return
    total = meter.total
    log.info("preflight: step, validation and checkpoint work: %.2f s, peak memory %.3f GB", *_numbers(total))
    if second is not None:
        log.info("preflight: compilation took %.2f s, a step takes %.3f s", _first(meter) - second, second)


def _numbers(phase: Phase) -> tuple[float, float]:
    return phase.seconds, phase.memory / 1e9


def _first(meter: Meter) -> float:
    """The seconds of the first step."""
    return sum(meter.phases[name].seconds for name in ("forward and loss", "backward", "optimizer step"))


def _train(state: State, training: Training, meter: Meter) -> float | None:
    """The first step; with `trainer.compile` also another, of which the seconds are returned."""
    steps = TrainingSteps(still(training.train), training.batch_size, training.seed, training.augment)
    drawn = loaded(steps[0])
    trial_step(state, training, drawn, meter)
    if not training.options.compile:
        return None
    again = Meter(state.separator.device)
    trial_step(state, training, drawn, again)
    return again.total.seconds


def _validate(state: State, training: Training) -> None:
    """Losses and scores of the first batch, and with `trainer.valid_full` of the first recording."""
    separator, valid = state.separator, training.valid
    if not len(valid):
        raise UsageError("there are no validation examples; add tracks to the split data.splits.valid")
    separator.eval()
    tally = Tally({metric: [] for metric in training.metrics})
    add_batch(state, training, loaded(FixedBatches(still(valid), training.batch_size)[0]), {RAW: tally})
    if training.options.valid_full:
        whole = read_recording(valid, 0, separator)
        estimates = separate_recording(separator, whole, EvalConfig.chunk, EvalConfig.overlap)
        tally.add(score(estimates, whole.sources, whole.mixture, separator.interchangeable, training.metrics))
    means = tally.means(training.ranks)
    if not math.isfinite(value := means.get(training.options.monitor, math.nan)):
        log.warning("preflight: %s is %g before training", training.options.monitor, value)


def _write(state: State, training: Training) -> None:
    """Write a checkpoint, with the moments of the optimizer, and remove it; warn if the disk is too small for more."""
    folder = training.folder / "checkpoints"
    path, existed = folder / "preflight.ckpt", folder.exists()
    try:
        checkpoint.save(path, {**contents_of(state, training), "weights": RAW})
        size = path.stat().st_size
    finally:
        with suppress(OSError):  # the error of writing is the one to show
            path.unlink()
        if not existed:
            with suppress(OSError):  # others may have written into it
                folder.rmdir()
    kept = training.options.keep_best if training.options.keep_best > 1 else 0
    needed, free = size * (3 + kept), shutil.disk_usage(training.folder).free  # best, last, a new one
    if free < needed:
        log.warning(
            "%s has %.2f GB left, and the checkpoints need about %.2f GB; make room, or lower trainer.keep_best",
            training.folder, free / 1e9, needed / 1e9,
        )  # fmt: skip


def table(meter: Meter, second: float | None) -> str:
    """A line for each phase with its seconds and its peak memory in GB, and for the second step, if there was one."""
    lines = [f"{'':18}{'seconds':>10}{'memory (GB)':>14}"]
    for name, phase in {**meter.phases, "total": meter.total}.items():
        lines.append(f"{name:18}{phase.seconds:10.3f}{phase.memory / 1e9:14.3f}")
    if second is not None:
        lines.append(f"{'compilation':18}{_first(meter) - second:10.3f}")
        lines.append(f"{'second step':18}{second:10.3f}")
    return "\n".join(lines)
