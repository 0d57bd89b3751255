"""Resumption of a run: its checkpoint, and the keys that may change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from separate import checkpoint
from separate.config import TrainConfig, TrainerConfig, flatten, lookup
from separate.data.storage.download import refuse_commands
from separate.device import choose_device
from separate.errors import UsageError
from separate.files import replace_file
from separate.parts import has_fixed_end
from separate.training.averages import RAW
from separate.training.selection import metric_of
from separate.training.state import State, Training, set_random_states
from separate.validation import brief, fits, validate

# keys that a resumed run may change; all others define the training in the checkpoint
MAY_CHANGE = (
    "run", "resume", "trust", "device", "data.root", "data.workers", "cache", "logger",
    "trainer.epochs", "trainer.min_epochs", "trainer.max_minutes", "trainer.max_hours", "trainer.max_bad_steps",
    "trainer.patience", "trainer.min_delta", "trainer.save_every",
    "trainer.threads", "trainer.precision", "trainer.compile", "trainer.accumulate", "trainer.keep_best",
    "trainer.anomaly", "trainer.profile", "trainer.preflight",
)  # fmt: skip

# values for runs older than these keys; auto keeps the value of the run
BEFORE = {"rescale": False, "input_level": "none"}
BEFORE_TRAINER = {**asdict(TrainerConfig()), "decay": "all"}  # the same, within `trainer`
WHOLE = ("trainer.rates",)  # sections that are one value; their keys hold dots
OLD_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # names in older runs

RENAMED = {"trainer.checkpoint_minutes": "trainer.save_every"}  # keys of older runs


def resume_command(folder: Path) -> str:
    """The command to resume a run, with the path quoted for Hydra if necessary."""
    plain = re.fullmatch(r"[\w/.:+@%-]+", str(folder), re.ASCII)
    return f"separate-train run={folder} resume=true" if plain else f"separate-train 'run=\"{folder}\"' resume=true"


def checkpoint_to_resume(resume: bool | str, folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of the run in `folder`, or of another run; None to start a new run.

    resume: true, false, auto, or the path of the other run or of its checkpoint.
    UsageError if `resume` contradicts the contents of the folder.
    """
    path = folder / "checkpoints" / "last.ckpt"
    source = other_run(resume, folder)
    if source is not None and not path.exists():
        return _training_checkpoint(source)
    if not path.exists():
        if resume is True:
            raise UsageError(
                f"{folder} holds no run to go on with (there is no checkpoints/last.ckpt); name its folder with "
                f"run=FOLDER, or start one there with resume=auto"
            )
        return None
    if resume is False or source is not None:
        raise UsageError(f"{folder} holds a run already; go on with it by resume=true, or choose another run=FOLDER")
    return _training_checkpoint(path)


def other_run(resume: bool | str, folder: Path) -> Path | None:
    """The checkpoint in `resume=PATH`, the last one if PATH is a run's folder; None without a path of another run."""
    if isinstance(resume, bool) or resume == "auto":
        return None
    path = Path(resume).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UsageError(f"resume={resume} is not true, false or auto, and {path} does not exist; name a run's folder")
    return None if path.resolve() == (folder / "checkpoints" / "last.ckpt").resolve() else path


def copy_history(source: Path, folder: Path, resumed: dict[str, Any]) -> dict[str, Any]:
    """Copy the metrics of another run to `folder`, and its best checkpoint if `resumed` already counts it as the best.

    Returns the changes of the training state: without that checkpoint the next epoch is the best so far.
    """
    run, training = checkpoint.run_folder(source), resumed["training"]
    changes: dict[str, Any] = {"kept": []}  # the epoch checkpoints stay in the other run
    if (metrics := run / "metrics.jsonl").is_file():
        replace_file(folder / "metrics.jsonl", metrics.read_bytes())
    best = run / "checkpoints" / "best.ckpt"
    if best.is_file():
        contents = checkpoint.read(best)
        monitor = metric_of(str(contents.get("weights", RAW)), str(lookup(resumed["config"], "trainer.monitor")))
        if contents.get("scores", {}).get(monitor) == training["best"]:
            replace_file(folder / "checkpoints" / "best.ckpt", best.read_bytes())
            return changes
    return {**changes, "best": None, "stale": 0}


def _training_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; UsageError if it has no training state."""
    contents = checkpoint.read(path)
    examples = contents.get("examples", {})
    if (
        not isinstance(contents.get("training"), dict)
        or not fits(examples, dict[str, int])
        or not {"train", "valid"} <= examples.keys()
    ):
        raise UsageError(f"{path} holds no training state; start another run")
    if (weights := contents.get("weights", RAW)) != RAW:
        raise UsageError(
            f"{path} holds the average {brief(weights)} and not the trained weights; resume from last.ckpt, or start "
            f"a new run from it with init={path}"
        )
    return contents


def configuration(saved: Mapping[str, Any], composed: Mapping[str, Any], changed: Sequence[str]) -> dict[str, Any]:
    """The configuration of a resumed run: `resumed_config`, validated, with the precision of older runs."""
    plain = resumed_config(saved, composed, changed)
    trainer = plain["trainer"]
    trainer["precision"] = OLD_PRECISIONS.get(trainer["precision"], trainer["precision"])
    if "rescale" not in saved and trainer["precision"] == "auto":
        on_cpu = choose_device(plain["device"]).type == "cpu"  # auto meant float32 there when the run was started
        trainer["precision"] = "fp32" if on_cpu else "auto"
    refuse_commands(plain["data"], composed["data"])
    validate(TrainConfig, plain)
    return plain


def restore(state: State, training: Training, resumed: Mapping[str, Any], path: Path) -> None:
    """Load the state of a checkpoint, read from `path`.

    UsageError if it does not fit the configuration, or if the data changed.
    """
    now, then = training.examples, resumed["examples"]
    if now != then:  # other data would give other batches
        raise UsageError(
            f"the data now gives {now['train']} training and {now['valid']} validation examples, and gave "
            f"{then['train']} and {then['valid']} when {path} was saved; restore the data, or start another run"
        )
    spec, ended = training.config["scheduler"], lookup(resumed, "config.trainer.epochs")
    if spec and has_fixed_end(spec) and training.options.epochs != ended:
        raise _fixed_end(ended, ended)
    try:
        state.restore(resumed)
        _restore_random(state, training, resumed["training"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"{path} holds no training state that fits its configuration ({brief(error)}); start another run"
        ) from None


def _restore_random(state: State, training: Training, saved: Mapping[str, Any]) -> None:
    """Restore the random state of each rank; an additional rank gets a new one."""
    ranks, others = training.ranks, saved.get("others", [])  # older checkpoints are of one process
    if 0 < ranks.rank <= len(others):
        set_random_states(others[ranks.rank - 1], state.separator.device)
    else:
        ranks.seed(training.seed, state.step)


def resumed_config(saved: Mapping[str, Any], composed: Mapping[str, Any], changed: Sequence[str]) -> dict[str, Any]:
    """The checkpoint's configuration with the user's changes; UsageError for keys that a resumed run cannot change.

    saved: the checkpoint's configuration; composed: the one that Hydra composed now; changed: the user's overrides.
    """
    keys = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in changed}
    if lookup(saved, "data._target_") == lookup(composed, "data._target_"):
        keys.discard("data")  # the same layout again; its defaults are no changes
    anywhere = any(key in ("experiment", "debug") for key in keys)  # they set keys in every section
    sections = {**_younger_sections(saved, composed, keys), **saved}
    old = {RENAMED.get(key, key): value for key, value in flatten(sections, whole=WHOLE).items()}
    new = flatten(composed, whole=WHOLE)
    younger = {f"trainer.{name}": value for name, value in BEFORE_TRAINER.items() if f"trainer.{name}" in new}
    undecided = younger.keys() - old.keys()
    old = {**younger, **old}
    if "trainer.epochs" in keys and "scheduler.T_max" in old and new["trainer.epochs"] != old["trainer.epochs"]:
        raise _fixed_end(old["scheduler.T_max"], old["trainer.epochs"])
    for key, value in new.items():
        named = _within(key, keys) or any(_within(one, (key,)) for one in keys)
        if (
            not (named or (anywhere and key not in undecided))
            or (key in old and old[key] == value)
            or (key in (*BEFORE, "batch_size") and value == "auto")
        ):
            continue
        if not _within(key, MAY_CHANGE):
            raise UsageError(
                f"{key}={value} is not what this run was started with ({old.get(key)}), and a resumed run keeps it; "
                f"leave it out, or start another run"
            )
        if named:  # an experiment or debug file changes no saved value
            old[key] = value
    empty = {name: value for name, value in saved.items() if value == {}}  # as of scheduler=none
    return {**empty, **_nested(old)}


def _fixed_end(end: int, epochs: int) -> UsageError:
    return UsageError(
        f"the learning rate of this run ends at epoch {end}, so trainer.epochs must stay {epochs}; start another run, "
        f"for example with scheduler=plateau"
    )


def _younger_sections(saved: Mapping[str, Any], composed: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """Sections that are younger than the run, with their defaults."""
    named = {key.partition(".")[0] for key in keys}
    sections = {name: composed[name] for name in composed if name not in saved and name not in named}
    return {**sections, **{name: value for name, value in BEFORE.items() if name in composed and name not in saved}}


def _within(key: str, sections: Sequence[str] | set[str]) -> bool:
    """Whether `key` is one of `sections` or lies in one of them."""
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config
