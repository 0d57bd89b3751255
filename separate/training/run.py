"""A run from its configuration: build the parts, start or resume, train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from separate.config import LoggerConfig, TrainConfig, TrainerConfig
from separate.errors import SeparateError, UsageError
from separate.files import FULL, printable, replace_file
from separate.instantiate import targets_in, trusted
from separate.process import settle, worker_count
from separate.training.distributed import ALONE, Ranks
from separate.training.overfitting import overfit
from separate.training.preflight import preflight
from separate.training.profiling import profiling
from separate.training.result import remove_result, write_result
from separate.training.resume import (
    checkpoint_to_resume,
    configuration,
    copy_history,
    other_run,
    restore,
    resume_command,
)
from separate.training.runlog import RunLog
from separate.training.setup import measure, prepare
from separate.training.state import State, Training
from separate.training.trainer import fit
from separate.validation import typed

log = logging.getLogger(__name__)


def run(
    config: TrainConfig,
    folder: Path,
    changed: Sequence[str] = (),
    watch: Callable[[State, float], None] | None = None,
    ranks: Ranks = ALONE,
) -> float | None:
    """Train in `folder` and return the best value of the monitored metric.

    changed: the user's overrides, `key=value`; a resumed run takes all other values from its checkpoint.
    watch: called after each epoch with the state and the monitored value.
    """
    plain = {**asdict(config), "run": str(folder)}
    resumed = ranks.of_first(lambda: checkpoint_to_resume(config.resume, folder))
    if config.trainer.preflight == "only" and (resumed is not None or ranks.size > 1):
        raise UsageError("trainer.preflight=only checks a new run in one process; leave it out, or start such a run")
    trust = None  # None: the user's configuration may name any class; a checkpoint only trusted ones
    if resumed is not None:
        trust = (*trusted(config.trust), "torch.optim.", *targets_in(plain))
        plain = {**configuration(resumed["config"], plain, changed), "run": str(folder)}
    settle(typed(TrainerConfig, plain["trainer"], "trainer.").threads)
    state, training = prepare(plain, folder, trust, None if resumed is None else resumed["model"], ranks)
    _log_summary(state, training)
    if resumed is None:
        measure(state, training)
        if training.options.preflight and ranks.size == 1 and not training.options.overfit:
            preflight(state, training)
        if training.options.preflight == "only":
            return None
    else:
        if source := ranks.of_first(lambda: other_run(config.resume, folder)):
            resumed["training"].update(ranks.of_first(lambda: copy_history(source, folder, resumed)))
        restore(state, training, resumed, source or folder / "checkpoints" / "last.ckpt")
        log.info("going on in %s after epoch %d, step %d", folder, state.epoch, state.step)
    if training.options.overfit:
        if ranks.first:
            _write_config(folder, training.config)
        return overfit(state, training)
    training.watch = watch
    if ranks.first:
        remove_result(folder)
        _write_config(folder, training.config)
        training.log = RunLog(
            folder, typed(LoggerConfig, plain["logger"], "logger."), state.epoch, state.step, training.config, trust
        )
    best = _fit(state, training)
    if best is None:
        raise SeparateError(
            f"{training.options.monitor} was never finite, so there is no best checkpoint; see {folder}/metrics.jsonl"
        )
    if ranks.first:
        write_result(state, training)
    return best


def _fit(state: State, training: Training) -> float | None:
    """`fit`, then close the log; SeparateError for a full disk."""
    complete = False
    try:
        try:
            first = state.step
            with profiling(state, training) as training.profile:
                best = fit(state, training)
            if best is not None:
                log.info("best %s: %.4g", training.options.monitor, best)
            if best is not None and training.log is not None and state.step > first:
                training.log.end({f"best/{training.options.monitor}": best}, state.step)
            complete = True
            return best
        finally:
            if training.log is not None:
                training.log.close(complete)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SeparateError(
            f"the disk that holds {training.folder} is full; free some space and go on with\n"
            f"  {resume_command(training.folder)}"
        ) from None


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    replace_file(folder / "config.yaml", printable(text).encode())


def _log_summary(state: State, training: Training) -> None:
    parameters = sum(p.numel() for p in state.separator.parameters())
    log.info(
        "%s, %.2f M parameters, on %s in %s with %d threads and %d worker(s)%s; %d training and %d validation "
        "examples, %d steps of %d in an epoch",
        type(state.separator.network).__name__,
        parameters / 1e6,
        state.separator.device,
        training.precision.name,
        torch.get_num_threads(),
        worker_count(training.workers, state.separator.device.type == "cuda"),
        "" if training.ranks.alone else f" in each of {training.ranks.size} processes",
        len(training.train),
        len(training.valid),
        training.steps_per_epoch,
        training.batch_size,
    )
