"""The configuration: its typed schema and the checks that need no data.  Only this module uses OmegaConf.

Sections of open choice (model, target, loss, optimizer, scheduler) name a class by `_target_`, and
`separate.instantiate` checks their keys against its signature.  All other sections are dataclasses here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from separate.errors import MISFIT, UsageError, nearest
from separate.validation import MISSING, brief, check_plain, number, typed, validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

MOST_SOURCES = 1000


@dataclass
class STFTConfig:
    n_fft: int = number(MISSING, least=2, most=2**20, unit="samples", example=512)
    hop: int = number(MISSING, least=1, most=2**20, unit="samples", example=128)
    window: str = "sqrt_hann"


@dataclass
class DataConfig:
    """The keys of every layout; subclasses add their own."""

    layout: str = MISSING
    sources: list[str] = MISSING
    interchangeable: bool = False
    sample_rate: int = number(MISSING, least=1, most=1_536_000, unit="Hz", example=44100)
    channels: int = number(1, least=1, most=1024)
    excerpt: float = number(MISSING, above=0, most=86_400, unit="seconds", example=4.0)
    workers: int | str = number("auto", least=0, most=1024, example=2, words=("auto",))
    licence: str | None = None


@dataclass
class ToyConfig(DataConfig):
    tracks: dict[str, int] = number({}, least=0, most=1_000_000, example="{train: 64, valid: 8, test: 8}")


@dataclass
class FolderConfig(DataConfig):
    root: str = MISSING
    splits: dict[str, str] = field(default_factory=dict)


@dataclass
class TracksConfig(FolderConfig):
    coherent: float = number(1.0, least=0, most=1)
    min_activity: float = number(0.0, least=0, most=1)


@dataclass
class MixtureConfig(TracksConfig):
    mixture: Literal["sum", "file"] = "sum"


@dataclass
class ShardsConfig(MixtureConfig):
    window: int = number(4, least=1, most=1_000_000, unit="shards")


@dataclass
class TaskConfig(TracksConfig):
    task: Literal["sep_clean", "sep_noisy"] = "sep_clean"


@dataclass
class PoolsConfig(FolderConfig):
    snr: float = number(5.0, least=0, most=200, unit="dB")
    pause: list[float] = number([0.05, 0.25], least=0, most=3600, unit="seconds")
    examples: int = number(200, least=1, most=10_000_000)


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
    kind: Literal["none", "audio", "spectrogram"] = "none"
    folder: str | None = None
    dtype: Literal["float32", "float16", "int16"] = "float32"
    limit: float | None = number(None, above=0, most=1e9, unit="GB", example=100)
    content: bool = False


@dataclass
class AugmentConfig:
    gain: list[float] | None = number(None, least=-200, most=200, unit="dB", example=[-6, 6])
    loudness: list[float] | None = number(None, least=-200, most=100, unit="LUFS", example=[-33, -25])
    polarity: float = number(0.0, least=0, most=1)
    swap: float = number(0.0, least=0, most=1)
    pan: float = number(0.0, least=0, most=1)
    dropout: float = number(0.0, least=0, most=1)
    shift: float = number(0.0, least=0, most=3600, unit="seconds")
    speed: list[float] | None = number(None, least=0.1, most=10, example=[0.9, 1.1])
    tempo: list[float] | None = number(None, least=0.1, most=10, example=[0.9, 1.1])
    pitch: list[float] | None = number(None, least=-48, most=48, unit="semitones", example=[-2, 2])
    equaliser: float = number(0.0, least=0, most=100, unit="dB")
    reverb: str | None = None
    reverb_probability: float = number(1.0, least=0, most=1)
    reverb_seconds: float = number(1.0, above=0, most=60, unit="seconds")
    reverb_reference: Literal["reverberant", "early", "dry"] = "reverberant"
    noise: str | None = None
    noise_probability: float = number(1.0, least=0, most=1)
    noise_snr: list[float] = number([5.0, 20.0], least=-200, most=200, unit="dB")


@dataclass
class TrainerConfig:
    epochs: int = number(100, least=1, most=10**9)
    steps_per_epoch: int | None = number(None, least=1, most=10**9, example=100)
    max_minutes: float | None = number(None, above=0, most=10**7, unit="minutes", example=30)
    monitor: str = "valid/loss"
    patience: int | None = number(10, least=1, most=10**9)
    min_delta: float = number(0.0, least=0, most=10**9)
    clip: float | None = number(5.0, above=0, most=10**9)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | str = number("auto", least=1, most=1024, example=2, words=("auto",))
    checkpoint_minutes: float = number(10.0, above=0, most=10**7, unit="minutes")
    valid_steps: int | None = number(None, least=1, most=10**9, example=10)


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    examples: int = number(2, least=0, most=1000)
    every: int = number(5, least=1, most=10**9)


@dataclass
class TrainConfig:
    data: Any = MISSING
    stft: STFTConfig = MISSING
    outputs: int | None = number(None, least=2, most=1000, example=4)
    consistency: Literal["none", "equal", "power"] = "none"
    rescale: Literal["auto"] | bool = "auto"
    input_level: Literal["auto", "none", "rms"] = "auto"
    model: dict[str, Any] = MISSING
    target: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    batch_size: int = number(16, least=1, most=65_536)
    seed: int = number(0, least=0, most=2**63 - 1)
    device: str = "auto"
    run: str = MISSING
    resume: Literal["auto"] | bool = False
    summary: bool = False
    trust: list[str] = field(default_factory=list)


@dataclass
class EvalConfig:
    data: dict[str, Any] = MISSING
    run: str | None = None
    split: Literal["train", "valid", "test"] = "test"
    device: str = "auto"
    chunk: float = number(10.0, above=0, most=86_400, unit="seconds")
    overlap: float = number(2.0, least=0, most=43_200, unit="seconds")
    trust: list[str] = field(default_factory=list)
    stft: Any = None  # set by data configurations and ignored: the checkpoint has its own


@dataclass
class DatasetConfig:
    data: Any = None
    stft: STFTConfig = field(default_factory=STFTConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    picture: str | None = "dataset.png"


Config = TypeVar("Config", TrainConfig, EvalConfig, DatasetConfig)


def from_hydra(cfg: DictConfig, schema: type[Config]) -> Config:
    """The composed configuration as a dataclass; UsageError, naming key and way out, for values that do not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise UsageError(f"{brief(error.full_key)} cannot be resolved ({brief(reason)}); write its value") from None
    config: Config = typed(schema, values)
    if isinstance(config, EvalConfig):
        check_overlap(config.chunk, config.overlap)
    elif config.data is not None:
        config.data = data_config(config.data)
    if isinstance(config, TrainConfig):
        _check_stft(config)
    return config


def data_config(values: Any) -> DataConfig:
    """The dataclass of the layout that `values` names."""
    layout = values.get("layout") if isinstance(values, Mapping) else values
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise UsageError(f"data.layout={brief(layout)} is unknown; {nearest(str(layout), LAYOUTS)}")
    config: DataConfig = typed(LAYOUTS[layout], values, "data.")
    return config


def evaluation_data(trained_on: Mapping[str, Any], chosen: Mapping[str, Any]) -> DataConfig:
    """The data to evaluate on: another layout if one was chosen, or the training data with the values that were set."""
    if chosen.get("layout") is None:
        return data_config({**trained_on, **{key: value for key, value in chosen.items() if value is not None}})
    return data_config(chosen)


def check_overlap(chunk: float, overlap: float, prefix: str = "") -> None:
    """UsageError if the cross-fades of a chunk, in seconds, would overlap.  prefix: of the options' names."""
    if overlap > chunk / 2:
        raise UsageError(f"{prefix}overlap={overlap:g} must be at most half of {prefix}chunk={chunk:g} seconds")


def _check_stft(config: TrainConfig) -> None:
    data, stft = config.data, config.stft
    samples = round(data.excerpt * data.sample_rate)
    if samples < stft.n_fft:
        raise UsageError(
            f"data.excerpt={data.excerpt} s is {samples} samples at {data.sample_rate} Hz, shorter than one STFT "
            f"window ({stft.n_fft}); use at least data.excerpt={stft.n_fft / data.sample_rate:g}"
        )


def check_stored(config: Any) -> None:
    """UsageError for the configuration of a checkpoint that is incomplete, not plain, too large or out of range.

    Sections that only training needs are checked when the run is resumed.
    """
    check_plain(config)
    if not isinstance(config, Mapping):
        raise UsageError("its configuration is not a section of keys with values")
    for section in ("data", "stft", "model", "seed"):
        if section not in config:
            raise UsageError(f"{MISFIT}: it has no {section}")
    for section, schema in (("data", DataConfig), ("stft", STFTConfig), ("cache", CacheConfig)):
        if section in config:
            validate(schema, config[section], f"{section}.")
    used = ("model", "outputs", "consistency", "rescale", "input_level", "seed")
    validate(TrainConfig, {key: config[key] for key in used if key in config})


def check_sources(names: Any) -> None:
    """UsageError for names that cannot be file names; a checkpoint takes them to other people's machines."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"data.sources={brief(names)} must be a list of names, e.g. data.sources=[vocals,other]")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"data.sources={brief(names)} must name at least one source, and each only once")
    if len(names) > MOST_SOURCES:
        raise UsageError(f"data.sources names {len(names)} sources; at most {MOST_SOURCES} can be separated")
    for name in names:
        if (
            name in ("all", ".", "..", "")
            or any(sign in "/\\" or not sign.isprintable() for sign in name)
            or len(name.encode(errors="replace")) > 100
        ):
            raise UsageError(
                f"data.sources: {brief(name)!r} cannot be the name of a source and of its file; choose another"
            )


@cache
def shipped(group: str) -> dict[str, dict[str, Any]]:
    """The configurations of a group in `conf/`, by name, unresolved."""
    from omegaconf import OmegaConf

    files = [path for path in (resources.files("separate.conf") / group).iterdir() if path.name.endswith(".yaml")]
    return {
        path.name.removesuffix(".yaml"): OmegaConf.to_container(OmegaConf.create(path.read_text("utf-8")))  # type: ignore[misc]
        for path in sorted(files, key=lambda path: path.name)
    }


def lookup(config: Any, key: str) -> Any:
    """The value at a dotted key of nested dataclasses and mappings, or None if it does not exist."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config
