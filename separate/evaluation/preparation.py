"""What separate-eval scores, and where its files go: a run on a split, or stems in folders."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from separate import checkpoint
from separate.compose import evaluation_data
from separate.config import CacheConfig, EvalConfig, STFTConfig
from separate.data import open_split
from separate.data.storage.download import refuse_commands
from separate.device import choose_device
from separate.errors import UsageError
from separate.evaluation.candidates import Candidate, Model
from separate.evaluation.metrics import Metric
from separate.evaluation.stems import Stems, open_stems
from separate.evaluation.unfinished import code_of
from separate.files import digest
from separate.stft import STFT
from separate.validation import typed


@dataclass(frozen=True)
class Prepared:
    """make: opens what is scored; folder: for the files; about: what it is, for the summary.

    facts: what the scores depend on, see `Unfinished`.
    """

    make: Callable[[], Candidate]
    folder: Path
    about: dict[str, Any]
    facts: dict[str, Any]


def prepare(config: EvalConfig, metrics: Mapping[str, Metric]) -> Prepared:
    """UsageError for keys that do not belong together."""
    if config.estimates is None and config.references is None:
        if config.permute:
            raise UsageError(
                "permute=true belongs to estimates=DIR; a checkpoint knows whether its sources have an order"
            )
        return _run(config, metrics)
    if config.estimates is None or config.references is None:
        raise UsageError("stems are scored with both estimates=DIR and references=DIR, in DIR/TRACK/SOURCE.wav")
    if config.run is not None:
        raise UsageError("run=RUN scores a separator and estimates=DIR scores stems; give one of them")
    if config.data.get("_target_") is not None or config.data.get("root") is not None:
        raise UsageError("the data of stems are in references=DIR; of data only data.sources belongs to estimates=DIR")
    return _stems(config, metrics)


def _run(config: EvalConfig, metrics: Mapping[str, Metric]) -> Prepared:
    path = checkpoint.find(config.run)
    print(f"checkpoint: {path}")
    contents = checkpoint.read(path)
    data = evaluation_data(contents["config"]["data"], config.data, config.trust)
    refuse_commands(vars(data), config.data)
    stored = contents["config"].get("cache", {})
    cache = CacheConfig(folder=stored.get("folder"), limit=stored.get("limit"))  # of decoded and downloaded files
    device = choose_device(config.device)

    def make() -> Model:
        separator = checkpoint.restore(contents, config.trust).to(device)
        examples = open_split(data, config.split, contents["config"]["seed"], cache)
        return Model(separator, examples, config.chunk, config.overlap)

    other = [] if config.data.get("_target_") is None else [data.name]
    other += [] if path.stem == "best" else [path.stem]
    folder = checkpoint.run_folder(path) / "eval" / "-".join([*other, config.split])
    about = {
        "checkpoint": str(path),
        "split": config.split,
        "data": data.name,
        "root": getattr(data, "root", None),
        "device": _name(device),
        "chunk": config.chunk,
        "overlap": config.overlap,
        "config": contents["config"],
        "versions": _versions(),
    }
    facts = {
        "checkpoint": digest(path, path.stat().st_size),
        "split": config.split,
        "data": vars(data),
        "chunk": [config.chunk, config.overlap],
        "device": _name(device),
        **_of_metrics(metrics, config.trust),
    }
    return Prepared(make, _out(config, folder), about, facts)


def _stems(config: EvalConfig, metrics: Mapping[str, Metric]) -> Prepared:
    assert config.estimates is not None and config.references is not None
    estimates, references = (Path(place).expanduser() for place in (config.estimates, config.references))
    stft = typed(STFTConfig, config.stft, "stft.")
    transform = STFT(stft.n_fft, stft.hop, stft.window)
    stems = open_stems(estimates, references, transform, config.data.get("sources"), config.permute)
    print(f"mixtures: {stems.mixtures()}")
    if stems.left_out:
        print(f"{stems.left_out} folders of {estimates} have no references and are left out")
    about = {
        "estimates": str(estimates),
        "references": str(references),
        "mixtures": stems.mixtures(),
        "stft": vars(stft),
        "versions": _versions(),
    }
    facts = {
        "estimates": stems.facts(),
        "sources": stems.sources,
        "stft": vars(stft),
        "permute": config.permute,
        **_of_metrics(metrics, config.trust),
    }

    def make() -> Stems:
        return stems

    return Prepared(make, _out(config, Path("eval") / estimates.resolve().name), about, facts)


def _out(config: EvalConfig, folder: Path) -> Path:
    return folder if config.out is None else Path(config.out).expanduser()


def _of_metrics(metrics: Mapping[str, Metric], trust: Iterable[str]) -> dict[str, Any]:
    """The metrics and the code that computes them and the networks."""
    packages = {metric.function.__module__.partition(".")[0] for metric in metrics.values()}
    return {"metrics": list(metrics), "code": code_of([*packages, *(name.partition(".")[0] for name in trust)])}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "separate": version("separate"), "torch": torch.__version__}
