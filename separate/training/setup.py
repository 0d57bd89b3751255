"""The parts of a run from its configuration, up to the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from separate.compose import data_config
from separate.config import AugmentConfig, CacheConfig, TrainerConfig
from separate.data import open_split
from separate.data.example import Examples, FileExamples
from separate.data.layouts.base import Layout
from separate.data.loader import TrainingSteps, load
from separate.data.mixing.augmentation import AudioFormat
from separate.data.mixing.augmenter import Augmenter
from separate.errors import UsageError
from separate.evaluation.metrics import higher_is_better, load_metrics
from separate.models.lstm import exclude_from_compilation
from separate.models.representation import observers
from separate.parts import build_loss, build_optimizer, build_schedule, build_separator, check_schedule
from separate.separator import Separator
from separate.stft import STFT
from separate.training.anomaly import Anomalies
from separate.training.averages import Averages, decays
from separate.training.batch_size import largest_batch
from separate.training.data_parallel import merge_statistics, parallelise, prepared
from separate.training.deferred import fuse
from separate.training.distributed import ALONE, Ranks, check_shares
from separate.training.finetuning.preparation import fine_tune
from separate.training.precision import Precision, choose_precision
from separate.training.state import Objective, State, Training
from separate.validation import typed


def prepare(
    config: Mapping[str, Any],
    folder: Path,
    trust: Sequence[str] | None = None,
    stored: Mapping[str, torch.Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[State, Training]:
    """The parts of a run, freshly initialised from the seed.  trust: as in `build`; stored: as in `build_separator`."""
    if config["batch_size"] != "auto":
        check_shares(ranks, config["batch_size"])
    elif ranks.size > 1:
        raise UsageError("batch_size=auto measures one process only; with several processes write batch_size=NUMBER")
    state, objective = prepare_step(config, trust, stored, ranks)
    data = data_config(config["data"], trust)
    with ranks.one_of_machine_first():
        train, valid, augment = _open_data(config, data, state.separator.stft, trust)
    if config["batch_size"] == "auto":
        steps = TrainingSteps(train, 1, config["seed"], augment)
        config = {**config, "batch_size": largest_batch(state, objective, steps)}
    ranks.seed(config["seed"])
    training = Training(
        **vars(objective),
        train=train,
        valid=valid,
        batch_size=config["batch_size"],
        seed=config["seed"],
        workers=data.workers,
        folder=folder,
        config=_resolved(config, state.separator, objective.precision),
        augment=augment,
        lags=state.separator.device.type != "cpu" and not objective.anomalies,  # the hooks know the last step only
        metrics=load_metrics(config.get("metrics", []), trust),
    )
    mode = "max" if higher_is_better(training.options.monitor, training.metrics) else "min"
    total_steps = training.options.epochs * training.steps_per_epoch
    if not training.options.overfit:
        state.scheduler = build_schedule(config, state.optimizer, mode, total_steps, trust)
    return state, training


def prepare_step(
    config: Mapping[str, Any],
    trust: Sequence[str] | None = None,
    stored: Mapping[str, torch.Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[State, Objective]:
    """The parts of a step, as from `prepare`, without a schedule; opens no data."""
    device = ranks.device(config["device"])
    options = typed(TrainerConfig, config["trainer"], "trainer.")
    torch.manual_seed(config["seed"])
    separator = build_separator(config, trust, stored)
    loss = build_loss(config, separator, trust)
    fine_tune(separator, config, resumed=stored is not None)
    separator.to(device)
    optimizer = build_optimizer(config, separator, trust)
    check_schedule(config, trust)  # the number of steps is not known yet
    fuse(optimizer, device)
    precision = choose_precision(options.precision, separator)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    averages = Averages(separator, decays(config.get("ema")), decays(config.get("ema_epoch")))
    state = State(separator, optimizer, None, scaler, averages=averages)
    if options.compile and not options.anomaly:  # compiled modules call no hooks
        exclude_from_compilation()
        separator.network.compile()
    loss = loss.to(device)
    anomalies = Anomalies(separator.network, loss) if options.anomaly else None
    compute = parallelise(separator, loss, ranks)
    objective = Objective(loss=loss, options=options, precision=precision, ranks=ranks, compute=compute)
    return state, replace(objective, anomalies=anomalies)


def _open_data(
    config: Mapping[str, Any], data: Layout, stft: STFT, trust: Sequence[str] | None
) -> tuple[Examples, Examples, Augmenter]:
    """The training and validation examples, and the augmentation of the training examples."""
    cache = typed(CacheConfig, config["cache"], "cache.")
    changes, frames = typed(AugmentConfig, config["augment"], "augment."), round(data.excerpt * data.sample_rate)
    augment = Augmenter(changes, AudioFormat(data.sample_rate, data.channels, frames), cache, trust=trust)
    longer = replace(data, excerpt=data.excerpt * augment.stretch.read_factor)
    train = open_split(longer, "train", config["seed"], cache, stft, changes)
    overfits = config["trainer"].get("overfit")  # overfitting needs no validation data
    valid = train if overfits else open_split(data, "valid", config["seed"], cache, stft)
    if isinstance(train, FileExamples):
        augment.noise.reader = train.reader  # noise files are read like the sources
    return train, valid, augment


def _resolved(config: Mapping[str, Any], separator: Separator, precision: Precision) -> dict[str, Any]:
    """The configuration with values in place of `auto`, so that a resumed run keeps them on another machine."""
    trainer = {**config["trainer"], "precision": precision.name}
    if separator.device.type == "cpu":
        trainer["threads"] = torch.get_num_threads()
    return {**config, "rescale": separator.rescale, "input_level": separator.input_level, "trainer": trainer}


@torch.no_grad()
def measure(state: State, training: Training) -> None:
    """Measure the statistics of the training set over one epoch, for the networks that normalise by them."""
    parts = observers(state.separator.network)
    if not parts:
        return
    steps = range(training.steps_per_epoch)
    pin, bar = state.separator.device.type == "cuda", training.ranks.hides_bar
    with closing(load(training.steps, steps, training.workers, pin)) as batches:
        for drawn in tqdm(batches, "measuring the training set", len(steps), leave=False, disable=bar):
            whole = drawn.to(state.separator.device, state.separator.stft)
            batch = prepared(training.loss, whole, drawn.context)
            spectrogram = state.separator.input_spectrogram(batch)
            for part in parts:
                part.observe(spectrogram)
    for part in parts:
        merge_statistics(part.normalise, training.ranks)
        part.use_statistics()
