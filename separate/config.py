"""The schema of the configuration, and access to the files of conf/.

Sections of open choice (data, model, target, loss, optimizer, scheduler) name a class by `_target_`.  The class of
`data` is a dataclass, see `separate.data.layouts.base`; `separate.instantiate` checks the keys of the others against
the signature of their class.  All other sections are dataclasses here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from separate.errors import UsageError
from separate.validation import MISSING, brief, number

MOST_SOURCES = 1000


@dataclass
class STFTConfig:
    n_fft: int = number(MISSING, least=2, most=2**20, unit="samples", example=512)
    hop: int = number(MISSING, least=1, most=2**20, unit="samples", example=128)
    window: str = "sqrt_hann"


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
    extra: dict[str, Any] = field(default_factory=dict)  # the user's own: {name: {_target_: package.Class, ...}}


@dataclass
class TrainerConfig:
    epochs: int = number(100, least=1, most=10**9)
    steps_per_epoch: int | None = number(None, least=1, most=10**9, example=100)
    min_epochs: int = number(1, least=1, most=10**9)
    max_minutes: float | None = number(None, above=0, most=10**7, unit="minutes", example=30)
    max_hours: float | None = number(None, above=0, most=10**6, unit="hours", example=23.5)
    monitor: str = "valid/loss"
    patience: int | None = number(10, least=1, most=10**9)
    min_delta: float = number(0.0, least=0, most=10**9)
    clip: float | Literal["auto"] | None = number(5.0, above=0, most=10**9)
    clip_percentile: float = number(10.0, least=0, most=100, unit="percent")
    clip_value: float | None = number(None, above=0, most=10**9, example=1.0)
    max_bad_steps: int = number(5, least=1, most=10**6)
    decay: Literal["weights", "all"] = "weights"
    rates: dict[str, float] | None = number(None, above=0, most=10**9, example={"encoder.*": 0.1})
    accumulate: int = number(1, least=1, most=65_536, example=4)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    compile: bool = False
    preflight: Literal["only"] | bool = True
    threads: int | Literal["auto"] = number("auto", least=1, most=1024, example=2)
    save_every: float = number(10.0, above=0, most=10**7, unit="minutes")
    keep_best: int = number(1, least=1, most=1000, example=3)
    valid_full: bool = False
    valid_steps: int | None = number(None, least=1, most=10**9, example=10)
    freeze: list[str] | None = None
    anomaly: bool = False
    profile: int | None = number(None, least=1, most=1000, example=5)
    overfit: int | None = number(None, least=1, most=10**6, example=200)


@dataclass
class LoraConfig:
    rank: int | None = number(None, least=1, most=65_536, example=8)
    alpha: float = number(16.0, above=0, most=10**6)
    layers: list[str] = field(default_factory=lambda: ["*"])


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False
    project: str = "separate"
    steps: int = number(50, least=1, most=10**9)
    examples: int = number(2, least=0, most=1000)
    every: int = number(5, least=1, most=10**9)
    figures: list[str] = field(default_factory=list)


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
    init: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    ema: float | list[float] | None = number(None, least=0, most=1 - 1e-9, example=0.999)
    ema_epoch: float | list[float] | None = number(None, least=0, most=1 - 1e-9, example=0.9)
    batch_size: int | Literal["auto"] = number(16, least=1, most=65_536)
    seed: int = number(0, least=0, most=2**63 - 1)
    device: str = "auto"
    run: str = MISSING
    resume: bool | str = False
    summary: bool = False
    dump: str | None = None
    metrics: list[str] = field(default_factory=list)
    trust: list[str] = field(default_factory=list)


@dataclass
class EvalConfig:
    data: dict[str, Any] = MISSING
    run: str | None = None
    split: Literal["train", "valid", "test"] = "test"
    device: str = "auto"
    chunk: float = number(10.0, above=0, most=86_400, unit="seconds")
    overlap: float = number(2.0, least=0, most=43_200, unit="seconds")
    metrics: list[str] = field(default_factory=list)
    workers: int | Literal["auto"] = number("auto", least=0, most=1024, example=4)
    estimates: str | None = None
    references: str | None = None
    permute: bool = False
    out: str | None = None
    trust: list[str] = field(default_factory=list)
    stft: Any = None  # of stems; a checkpoint has its own


@dataclass
class DatasetConfig:
    data: Any = None
    stft: STFTConfig = field(default_factory=STFTConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    picture: str | None = "dataset.png"


def check_sources(names: Any) -> None:
    """UsageError for names that are not portable file names, because a checkpoint moves to other machines."""
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
                f"data.sources: {brief(name)!r} cannot be the name of a source and its file; choose another"
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


def flatten(config: Mapping[str, Any], prefix: str = "", whole: Sequence[str] = ()) -> dict[str, Any]:
    """{section: {key: value}} -> {section.key: value}.  whole: sections that stay mappings."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name, section = f"{prefix}{key}", isinstance(value, Mapping)
        flat.update(flatten(value, f"{name}.", whole) if section and name not in whole else {name: value})
    return flat
