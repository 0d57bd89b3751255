"""The configuration: its typed schema and the checks that need no data.  The only home of OmegaConf.

Sections of open choice (model, target, loss, optimizer, scheduler) name a class by `_target_`, and `separate.build`
checks their keys against its signature.  Everything else is a dataclass here.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from separate.errors import UsageError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig


MISSING: Any = "???"  # OmegaConf's mark of a value that must be given


@dataclass
class STFTConfig:
    n_fft: int = MISSING  # samples
    hop: int = MISSING  # samples
    window: str = "sqrt_hann"


@dataclass
class DataConfig:
    """What every layout has.  A layout adds its own keys below."""

    layout: str = MISSING
    sources: list[str] = MISSING
    interchangeable: bool = False
    sample_rate: int = MISSING  # Hz
    channels: int = 1
    excerpt: float = MISSING  # seconds
    workers: int = 0
    licence: str | None = None


@dataclass
class ToyConfig(DataConfig):
    tracks: dict[str, int] = field(default_factory=dict)


@dataclass
class FolderConfig(DataConfig):
    root: str = MISSING
    splits: dict[str, str] = field(default_factory=dict)


@dataclass
class TracksConfig(FolderConfig):
    coherent: float = 1.0
    min_activity: float = 0.0


@dataclass
class MixtureConfig(TracksConfig):
    mixture: str = "sum"


@dataclass
class ShardsConfig(MixtureConfig):
    window: int = 4  # shards


@dataclass
class TaskConfig(TracksConfig):
    task: str = "sep_clean"


@dataclass
class PoolsConfig(FolderConfig):
    snr: float = 5.0  # dB
    pause: list[float] = field(default_factory=lambda: [0.05, 0.25])  # seconds
    examples: int = 200


LAYOUTS: dict[str, type[DataConfig]] = {
    "toy": ToyConfig,
    "stems": MixtureConfig,
    "musdb18": MixtureConfig,
    "slakh": MixtureConfig,
    "wsj0mix": TracksConfig,
    "wham": TaskConfig,
    "librimix": TaskConfig,
    "pools": PoolsConfig,
    "manifest": TracksConfig,
    "shards": ShardsConfig,
}


@dataclass
class CacheConfig:
    kind: str = "none"
    folder: str | None = None
    dtype: str = "float32"
    limit: float | None = None  # GB
    content: bool = False


@dataclass
class AugmentConfig:
    gain: list[float] | None = None  # dB
    loudness: list[float] | None = None  # LUFS
    polarity: float = 0.0
    swap: float = 0.0
    pan: float = 0.0
    dropout: float = 0.0
    shift: float = 0.0  # seconds
    speed: list[float] | None = None
    tempo: list[float] | None = None
    pitch: list[float] | None = None  # semitones
    equaliser: float = 0.0  # dB
    reverb: str | None = None
    reverb_probability: float = 1.0
    reverb_seconds: float = 1.0
    noise: str | None = None
    noise_probability: float = 1.0
    noise_snr: list[float] = field(default_factory=lambda: [5.0, 20.0])  # dB


@dataclass
class TrainerConfig:
    epochs: int = 100
    steps_per_epoch: int | None = None
    max_minutes: float | None = None
    monitor: str = "valid/loss"
    patience: int | None = 10
    min_delta: float = 0.0
    clip: float | None = 5.0
    precision: str = "auto"
    checkpoint_minutes: float = 10.0
    valid_steps: int | None = None


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    examples: int = 2
    every: int = 5


@dataclass
class TrainConfig:
    data: Any = MISSING
    stft: STFTConfig = field(default_factory=STFTConfig)
    outputs: int | None = None
    consistency: str = "none"
    rescale: Any = "auto"
    input_level: str = "auto"
    model: dict[str, Any] = MISSING
    target: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"
    run: str = MISSING
    resume: Any = False
    summary: bool = False
    trust: list[str] = field(default_factory=list)


@dataclass
class EvalConfig:
    data: dict[str, Any] = MISSING
    run: str | None = None
    split: str = "test"
    device: str = "auto"
    chunk: float = 10.0  # seconds
    overlap: float = 2.0  # seconds
    trust: list[str] = field(default_factory=list)
    stft: Any = None  # a data config sets one; the checkpoint's is used


@dataclass
class DatasetConfig:
    data: Any = None
    stft: STFTConfig = field(default_factory=STFTConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    picture: str | None = "dataset.png"


Config = TypeVar("Config", TrainConfig, EvalConfig, DatasetConfig)

# key: (least value, an example that works)
LEAST = {
    "batch_size": (1, 16),
    "outputs": (2, 4),
    "seed": (0, 0),
    "data.sample_rate": (1, 44100),
    "data.channels": (1, 2),
    "data.workers": (0, 2),
    "data.examples": (1, 200),
    "data.snr": (0, 5),
    "data.window": (1, 4),
    "trainer.epochs": (1, 100),
    "trainer.steps_per_epoch": (1, 100),
    "trainer.valid_steps": (1, 10),
    "trainer.patience": (1, 10),
    "trainer.min_delta": (0, 0),
    "logger.examples": (0, 2),
    "logger.every": (1, 5),
    "overlap": (0, 2),
}
ABOVE_ZERO = {
    "data.excerpt": 4.0,
    "trainer.clip": 5.0,
    "trainer.max_minutes": 30,
    "trainer.checkpoint_minutes": 10,
    "chunk": 10,
}
ONE_OF = {
    "trainer.precision": ("auto", "float32", "bfloat16", "float16"),
    "data.mixture": ("sum", "file"),
    "cache.kind": ("none", "audio", "spectrogram"),
    "cache.dtype": ("float32", "float16", "int16"),
    "data.task": ("sep_clean", "sep_noisy"),
    "split": ("train", "valid", "test"),
    "resume": (True, False, "auto"),
    "consistency": ("none", "equal", "power"),
    "rescale": ("auto", True, False),
    "input_level": ("auto", "none", "rms"),
}


def from_hydra(cfg: DictConfig, schema: type[Config]) -> Config:
    """The composed configuration as plain dataclasses; UsageError for what does not fit, naming key and way out."""
    from omegaconf import OmegaConf

    if schema is not EvalConfig and cfg.get("data") is not None:
        cfg.data = OmegaConf.create(asdict(data_config(OmegaConf.to_container(cfg.data, resolve=True))))
    config = _typed(schema, OmegaConf.to_container(cfg, resolve=True))
    if isinstance(config, (TrainConfig, DatasetConfig)) and config.data is not None:
        config.data = data_config(config.data)
    _check_values(config)
    if isinstance(config, TrainConfig):
        _check_stft(config)
    return config


def data_config(values: Any) -> DataConfig:
    """The dataclass of the layout that `values` names."""
    layout = values.get("layout")
    if layout not in LAYOUTS:
        raise UsageError(f"data.layout={layout} is no layout; {nearest(str(layout), LAYOUTS)}")
    config: DataConfig = _typed(LAYOUTS[layout], values, "data.")
    _check_values({"data": config})
    return config


def evaluation_data(trained_on: Mapping[str, Any], chosen: Mapping[str, Any]) -> DataConfig:
    """The data to evaluate on: what was chosen, or the data trained on with the values that were set."""
    if chosen.get("layout") is None:
        return data_config({**trained_on, **{key: value for key, value in chosen.items() if value is not None}})
    return data_config(chosen)


def _typed(schema: type, values: Any, prefix: str = "") -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except ConfigKeyError as error:
        near = nearest(str(error.key), [f.name for f in fields(_section(schema, str(error.full_key)))])
        raise UsageError(f"there is no key {prefix}{error.full_key}; {near}") from None
    except MissingMandatoryValue as error:
        key = f"{prefix}{error.full_key}"
        raise UsageError(f"{key} is not set and has no default; add {key}=VALUE") from None
    except OmegaConfBaseException as error:
        reason = str(error.msg).splitlines()[0]
        if "is not a ListConfig" in reason:
            reason = f"must be a list, e.g. {prefix}{error.full_key}=[a,b]"
        raise UsageError(f"{prefix}{error.full_key}: {reason}") from None
    return config


def _section(schema: type, full_key: str) -> type:
    """The dataclass that `a.b.key` would be a key of."""
    for name in full_key.split(".")[:-1]:
        schema = typing.get_type_hints(schema)[name]
    return schema


def _check_values(config: Any) -> None:
    for key, (least, example) in LEAST.items():
        value = lookup(config, key)
        if isinstance(value, (int, float)) and value < least:
            raise UsageError(f"{key}={value} must be at least {least}, e.g. {key}={example}")
    for key, above in ABOVE_ZERO.items():
        value = lookup(config, key)
        if isinstance(value, (int, float)) and not 0 < value < math.inf:
            raise UsageError(f"{key}={value} must be above 0 and finite, e.g. {key}={above}")
    for key, choices in ONE_OF.items():
        value = lookup(config, key)
        if value is not None and str(value) not in map(str, choices):  # so that 1 is not True
            raise UsageError(f"{key}={value} is unknown; choose from {', '.join(map(str, choices))}".lower())
    if isinstance(config, EvalConfig) and config.overlap > config.chunk / 2:
        raise UsageError(f"overlap={config.overlap} must be at most half of chunk={config.chunk} seconds")


def _check_stft(config: TrainConfig) -> None:
    data, stft = config.data, config.stft
    samples = round(data.excerpt * data.sample_rate)
    if samples < stft.n_fft:
        raise UsageError(
            f"data.excerpt={data.excerpt} s is {samples} samples at {data.sample_rate} Hz, shorter than one STFT "
            f"window ({stft.n_fft}); use at least data.excerpt={stft.n_fft / data.sample_rate:g}"
        )


def check_sources(names: Sequence[str]) -> None:
    """Names of sources become names of files, here and, from a checkpoint, on other people's machines."""
    if not names or len(set(names)) < len(names):
        raise UsageError(f"data.sources={list(names)} must name at least one source, and each only once")
    for name in names:
        if name in ("all", ".", "..", "") or "/" in name or "\\" in name or "\0" in name:
            raise UsageError(f"data.sources: {name!r} cannot be the name of a source and of its file; choose another")


@cache
def shipped(group: str) -> dict[str, dict[str, Any]]:
    """The configurations of a group that come with the program, by name, as they stand in their files."""
    from omegaconf import OmegaConf

    files = [path for path in (resources.files("separate.conf") / group).iterdir() if path.name.endswith(".yaml")]
    return {
        path.name.removesuffix(".yaml"): OmegaConf.to_container(OmegaConf.create(path.read_text()))  # type: ignore[misc]
        for path in sorted(files, key=lambda path: path.name)
    }


def lookup(config: Any, key: str) -> Any:
    """The value at a dotted key of nested dataclasses and mappings, or None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config
