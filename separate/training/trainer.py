"""The training loop: train an epoch, validate, adapt the learning rate, stop early, keep the best checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing

from separate.config import TrainerConfig
from separate.data.loader import load
from separate.data.mixing.raw_batch import RawBatch
from separate.evaluation.metrics import higher_is_better
from separate.process import release
from separate.training.finetuning.preparation import train_mode
from separate.training.interruption import Interrupted, Interruption, Stopped, interruptible
from separate.training.profiling import stage
from separate.training.progress import Progress
from separate.training.resume import resume_command
from separate.training.runlog import COUNTS
from separate.training.saving import save, save_epoch
from separate.training.schedules import after_epoch
from separate.training.selection import ranked, winner
from separate.training.state import State, Training
from separate.training.step import flush, train_step
from separate.training.validation import check_monitor, validate

log = logging.getLogger(__name__)


def fit(state: State, training: Training) -> float | None:
    """Train from the given state to the end and return the best value of the monitored metric."""
    options = training.options
    check_monitor(training)
    if _finished(state, training):
        log.info(
            "the run had ended already, after %d epochs; to go on, raise the limit that ended it: trainer.epochs, "
            "trainer.patience or trainer.max_minutes",
            state.epoch,
        )
        return state.best
    remaining = range(state.step, options.epochs * training.steps_per_epoch)
    pin = state.separator.device.type == "cuda"
    with (
        interruptible(options.max_hours, training.ranks) as interruption,
        closing(load(training.steps, remaining, training.workers, pin)) as batches,
    ):
        try:
            while not _finished(state, training):
                means = train_epoch(state, training, batches, interruption)
                state.averages.after_epoch(state.epoch)
                means.update(validate(state, training, interruption))
                end_epoch(state, training, means)
                release()
        except Interrupted:
            save(state, training, "last")
            training.ranks.wait()  # torchrun kills the other ranks 30 seconds after the first one ends
            log.info("saved checkpoints/last.ckpt after step %d", state.step)  # before workers and threads end
            raise Stopped(
                f"{interruption.reason} in epoch {state.epoch + 1} after step {state.step}; the state is saved. Go on "
                f"with\n  {resume_command(training.folder)}",
                interruption.exit_code,
            ) from None
    return state.best


def _finished(state: State, training: Training) -> bool:
    options = training.options
    pending = state.step > state.epoch * training.steps_per_epoch  # stopped before the validation of this epoch
    patient = options.patience is None or state.stale < options.patience or state.epoch < options.min_epochs
    return state.epoch >= options.epochs or not (pending or (patient and not _out_of_time(state, options)))


def _out_of_time(state: State, options: TrainerConfig) -> bool:
    return options.max_minutes is not None and state.seconds >= 60 * options.max_minutes


def train_epoch(
    state: State, training: Training, batches: Iterator[RawBatch], interruption: Interruption
) -> dict[str, float]:
    """Train the remaining steps of this epoch; return the means over the whole epoch by name, and the throughput."""
    options, ranks = training.options, training.ranks
    train_mode(state.separator)
    end, unsaved = (state.epoch + 1) * training.steps_per_epoch, 0.0
    title, device = f"epoch {state.epoch + 1}/{options.epochs}", state.separator.device
    with closing(Progress(title, end - state.step, training.batch_size, device, ranks.hides_bar)) as progress:
        while state.step < end and not _out_of_time(state, options):
            begun = time.perf_counter()
            with progress.waiting(), stage("waiting for data"):
                batch = next(batches)
            state.add(train_step(state, training, batch))
            lap = time.perf_counter() - begun if ranks.first else 0.0
            lap, rejected = ranks.totals(lap, batch.rejected)
            state.add({"rejected": rejected} if rejected else {})
            state.seconds += lap  # `validate` adds its own time
            unsaved += lap
            progress.update(state.sums)
            if training.log:
                training.log.steps(state)
            if unsaved > 60 * options.save_every:
                save(state, training, "last")
                unsaved = 0.0
            if training.profile:
                training.profile.step()
            interruption.check()
    state.add(flush(state, training))
    return {**_means(state.sums, training.batch_size), **progress.rates()}


def _means(sums: dict[str, float], batch_size: int) -> dict[str, float]:
    """The means over the applied steps of an epoch, the number of skipped steps, the share of rejected excerpts."""
    sums = dict(sums)
    steps, rejected, skipped = (sums.pop(name, 0.0) for name in COUNTS)
    means = {f"train/{name}": total / steps for name, total in sums.items()}
    means["train/skipped"] = skipped
    if rejected:
        means["train/rejected"] = rejected / (rejected + steps * batch_size)
    return means


def end_epoch(state: State, training: Training, means: dict[str, float]) -> None:
    """Compare the epoch with the best one, adapt the learning rate, log the metrics, save checkpoints."""
    options = training.options
    upwards = higher_is_better(options.monitor, training.metrics)
    weights, value = winner(means, options.monitor, state.averages.sets, upwards)
    if not math.isfinite(value):
        log.warning("epoch %d: %s is %g; such an epoch is never the best", state.epoch + 1, options.monitor, value)
    gain = math.inf if state.best is None else (value - state.best) if upwards else (state.best - value)
    improved = math.isfinite(value) and gain > options.min_delta
    if improved:
        state.best, state.stale = value, 0
    else:
        state.stale += 1
    rate = state.optimizer.param_groups[0]["lr"]
    after_epoch(state.scheduler, value, upwards)
    state.epoch += 1
    state.sums = {}
    state.kept = ranked(state.kept, value, state.epoch, options.keep_best, upwards)
    facts = {"epoch": state.epoch, "step": state.step, "minutes": state.seconds / 60, "learning_rate": rate, **means}
    if training.log:
        training.log.epoch(facts, improved)
        training.log.pictures(state, training.valid)
    if improved and len(state.averages.sets) > 1:
        log.info("best.ckpt holds the weights %s", weights)
    save_epoch(state, training, means, weights, improved)
    if training.watch:
        training.watch(state, value)
