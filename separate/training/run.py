"""One run from its configuration: build the parts, start or go on, train."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from separate import checkpoint
from separate.config import (
    AugmentConfig,
    CacheConfig,
    LoggerConfig,
    TrainConfig,
    TrainerConfig,
    data_config,
    lookup,
    typed,
)
from separate.data import open_split
from separate.data.example import FileExamples
from separate.data.mixing.augmentation import AudioFormat
from separate.data.mixing.augmenter import Augmenter
from separate.data.storage.download import refuse_commands
from separate.device import choose_device
from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import higher_is_better, with_own
from separate.files import FULL, printable, replace_file
from separate.instantiate import build_loss, build_optimizer, build_separator, targets_in, trusted
from separate.process import settle, worker_count
from separate.training.deferred import fuse
from separate.training.runlog import RunLog
from separate.training.state import State
from separate.training.trainer import Training, fit, how_to_go_on, measure, precision
from separate.validation import brief, fits, validate

log = logging.getLogger(__name__)

# what a resumed run may change; all else is part of what the checkpoint stands for
MAY_CHANGE = (
    "run", "resume", "trust", "device", "data.root", "data.workers", "cache", "logger",
    "trainer.epochs", "trainer.max_minutes", "trainer.patience", "trainer.min_delta", "trainer.checkpoint_minutes",
    "trainer.threads", "trainer.precision",
)  # fmt: skip

# the values for runs older than these keys; auto keeps the value that it had when the run was started
BEFORE = {"rescale": False, "input_level": "none"}


def run(config: TrainConfig, folder: Path, changed: Sequence[str] = ()) -> float | None:
    """Train in `folder` and return the best value of the monitored metric.

    changed: the overrides that the user gave, `key=value`; a resumed run takes the rest from its checkpoint.
    """
    plain = {**asdict(config), "run": str(folder)}
    resumed = _checkpoint_to_resume(config, folder)
    trust = None  # what the user wrote may name any class; what a checkpoint says, only these
    if resumed is not None:
        trust = (*trusted(config.trust), "torch.optim.", *targets_in(plain))
        written = plain["data"]
        plain = resumed_config(resumed["config"], plain, changed)
        if "rescale" not in resumed["config"] and plain["trainer"]["precision"] == "auto":
            on_cpu = choose_device(plain["device"]).type == "cpu"  # where auto meant float32 until then
            plain["trainer"]["precision"] = "float32" if on_cpu else "auto"
        refuse_commands(plain["data"], written)
        validate(TrainConfig, plain)
    settle(typed(TrainerConfig, plain["trainer"], "trainer.").threads)
    state, training = prepare(plain, folder, trust, None if resumed is None else resumed["model"])
    _say_what_is_trained(state, training)
    if resumed is not None:
        _check_same_examples(resumed, training, folder)
        try:
            state.restore(resumed)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UsageError(
                f"{folder}/checkpoints/last.ckpt holds no training state that fits its configuration ({brief(error)}); "
                f"start another run"
            ) from None
        log.info("going on in %s after epoch %d, step %d", folder, state.epoch, state.step)
    else:
        measure(state, training)
    _write_config(folder, training.config)
    training.log = RunLog(folder, typed(LoggerConfig, plain["logger"], "logger."), state.epoch, trust)
    try:
        try:
            best = fit(state, training)
        finally:
            training.log.close()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SeparateError(
            f"the disk that {folder} lies on is full; make room and go on with\n  {how_to_go_on(folder)}"
        ) from None
    if best is None:
        raise SeparateError(
            f"{training.options.monitor} was never finite, so there is no best checkpoint; look at "
            f"{folder}/metrics.jsonl"
        )
    log.info("best %s: %.4g", training.options.monitor, best)
    return best


def prepare(
    config: Mapping[str, Any],
    folder: Path,
    trust: Sequence[str] | None = None,
    stored: Mapping[str, torch.Tensor] | None = None,
) -> tuple[State, Training]:
    """The parts of a run, freshly initialised from the seed.  trust: as in `build`; stored: as in `build_separator`."""
    device = choose_device(config["device"])
    options = typed(TrainerConfig, config["trainer"], "trainer.")
    torch.manual_seed(config["seed"])
    separator = build_separator(config, trust, stored)
    loss = build_loss(config, separator, trust)
    data = data_config(config["data"], trust)
    cache = typed(CacheConfig, config["cache"], "cache.")
    changes, frames = typed(AugmentConfig, config["augment"], "augment."), round(data.excerpt * data.sample_rate)
    augment = Augmenter(changes, AudioFormat(data.sample_rate, data.channels, frames), cache, trust=trust)
    longer = replace(data, excerpt=data.excerpt * augment.stretch.read_factor)
    train = open_split(longer, "train", config["seed"], cache, separator.stft, changes)
    valid = open_split(data, "valid", config["seed"], cache, separator.stft)
    if isinstance(train, FileExamples):
        augment.noise.reader = train.reader  # noise has the encoding of the sources

    separator.to(device)
    metrics = with_own(config.get("metrics", []), trust)
    mode = "max" if higher_is_better(options.monitor, metrics) else "min"
    optimizer, scheduler = build_optimizer(config, separator.parameters(), mode, trust)
    fuse(optimizer, device)
    dtype = precision(options.precision, separator)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    state = State(separator, optimizer, scheduler, scaler)
    training = Training(
        loss=loss.to(device),
        train=train,
        valid=valid,
        options=options,
        batch_size=config["batch_size"],
        seed=config["seed"],
        workers=data.workers,
        folder=folder,
        config={  # auto is resolved, so that a resumed run goes on alike on another machine
            **config,
            "rescale": separator.rescale,
            "input_level": separator.input_level,
            "trainer": {
                **config["trainer"],
                "precision": str(dtype).removeprefix("torch."),
                "threads": torch.get_num_threads() if device.type == "cpu" else options.threads,
            },
        },
        augment=augment,
        lags=device.type != "cpu",
        dtype=dtype,
        metrics=metrics,
    )
    return state, training


def _checkpoint_to_resume(config: TrainConfig, folder: Path) -> dict[str, Any] | None:
    """What `folder` holds of an earlier run, where `resume` asks to go on with it."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        if config.resume is True:
            raise UsageError(
                f"{folder} holds no run to go on with (there is no checkpoints/last.ckpt); name its folder with "
                f"run=FOLDER, or start one there with resume=auto"
            )
        return None
    if config.resume is False:
        raise UsageError(f"{folder} holds a run already; go on with it by resume=true, or choose another run=FOLDER")
    contents = checkpoint.read(path)
    examples = contents.get("examples", {})
    if (
        not isinstance(contents.get("training"), dict)
        or not fits(examples, dict[str, int])
        or not {"train", "valid"} <= examples.keys()
    ):
        raise UsageError(f"{path} holds no training state; start another run")
    return contents


def _check_same_examples(resumed: Mapping[str, Any], training: Training, folder: Path) -> None:
    """Other data would give other batches, and the run would not be the one that was stopped."""
    now, then = training.examples, resumed["examples"]
    if now != then:
        raise UsageError(
            f"the data now gives {now['train']} training and {now['valid']} validation examples, and gave "
            f"{then['train']} and {then['valid']} when {folder} was saved; put it back as it was, or start another run"
        )


def resumed_config(saved: Mapping[str, Any], composed: Mapping[str, Any], changed: Sequence[str]) -> dict[str, Any]:
    """The checkpoint's configuration with what the user changed; UsageError for what a resumed run cannot change."""
    keys = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in changed}
    if lookup(saved, "data._target_") == lookup(composed, "data._target_"):
        keys.discard("data")  # the layout that it has; its defaults are no changes
    anywhere = any(key in ("experiment", "debug") for key in keys)  # these set keys in every section
    named_sections = {key.partition(".")[0] for key in keys}
    since = {name: composed[name] for name in composed if name not in saved and name not in named_sections}
    since.update({name: value for name, value in BEFORE.items() if name in composed and name not in saved})
    old, new = _flat({**since, **saved}), _flat(composed)  # a section that is younger than the run has its defaults
    if "trainer.epochs" in keys and "scheduler.T_max" in old and new["trainer.epochs"] != old["trainer.epochs"]:
        raise UsageError(
            f"the learning rate of this run ends at epoch {old['scheduler.T_max']}, so that trainer.epochs stays "
            f"{old['trainer.epochs']}; start another run, or use scheduler=plateau in the first place"
        )
    for key, value in new.items():
        named = any(f"{key}.".startswith(f"{name}.") for name in keys)
        if not (named or anywhere) or (key in old and old[key] == value) or (key in BEFORE and value == "auto"):
            continue
        free = any(f"{key}.".startswith(f"{name}.") for name in MAY_CHANGE)
        if free and not named:  # what the experiment leaves open stays as it was saved
            continue
        if not free:
            raise UsageError(
                f"{key}={value} is not what this run was started with ({old.get(key)}), and a resumed run keeps it; "
                f"leave it out, or start another run"
            )
        old[key] = value
    return _nested(old)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{section: {key: value}} -> {section.key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    replace_file(folder / "config.yaml", printable(text).encode())


def _say_what_is_trained(state: State, training: Training) -> None:
    parameters = sum(p.numel() for p in state.separator.parameters())
    log.info(
        "%s, %.2f M parameters, on %s in %s with %d threads and %d worker(s); %d training and %d validation examples, "
        "%d steps of %d in an epoch",
        type(state.separator.network).__name__,
        parameters / 1e6,
        state.separator.device,
        str(training.dtype).removeprefix("torch."),
        torch.get_num_threads(),
        worker_count(training.workers, state.separator.device.type == "cuda"),
        len(training.train),
        len(training.valid),
        training.steps_per_epoch,
        training.batch_size,
    )
