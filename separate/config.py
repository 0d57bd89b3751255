"""The configuration: its typed schema, the checks that need no data, and `build`, which makes the parts.

The only home of OmegaConf.  Sections of open choice (model, target, loss, optimizer, scheduler) name a class by
`_target_`; their keys are checked against its signature.  Everything else is a dataclass here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from separate.errors import UsageError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from separate.losses import Loss
    from separate.separator import Separator

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given
OURS = ("separate.",)


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
class PoolsConfig(FolderConfig):
    snr: float = 5.0  # dB
    pause: list[float] = field(default_factory=lambda: [0.05, 0.25])  # seconds
    examples: int = 200


LAYOUTS: dict[str, type[DataConfig]] = {
    "toy": ToyConfig,
    "stems": FolderConfig,
    "wsj0mix": FolderConfig,
    "pools": PoolsConfig,
}


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
    model: dict[str, Any] = MISSING
    target: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"
    run: str = MISSING
    resume: Any = False
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


Config = TypeVar("Config", TrainConfig, EvalConfig)

# key: (least value, an example that works)
LEAST = {
    "batch_size": (1, 16),
    "seed": (0, 0),
    "data.sample_rate": (1, 44100),
    "data.channels": (1, 2),
    "data.workers": (0, 2),
    "data.examples": (1, 200),
    "data.snr": (0, 5),
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
    "split": ("train", "valid", "test"),
    "resume": (True, False, "auto"),
}


def from_hydra(cfg: DictConfig, schema: type[Config]) -> Config:
    """The composed configuration as plain dataclasses; UsageError for what does not fit, naming key and way out."""
    from omegaconf import OmegaConf

    if schema is TrainConfig and cfg.get("data") is not None:
        cfg.data = OmegaConf.create(asdict(data_config(OmegaConf.to_container(cfg.data, resolve=True))))
    config = _typed(schema, OmegaConf.to_container(cfg, resolve=True))
    if isinstance(config, TrainConfig):
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
    return _typed(LAYOUTS[layout], values, "data.")


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
        if value is not None and value < least:
            raise UsageError(f"{key}={value} must be at least {least}, e.g. {key}={example}")
    for key, above in ABOVE_ZERO.items():
        value = lookup(config, key)
        if value is not None and not value > 0:
            raise UsageError(f"{key}={value} must be above 0, e.g. {key}={above}")
    for key, choices in ONE_OF.items():
        value = lookup(config, key)
        if value is not None and value not in choices:
            raise UsageError(f"{key}={value} is unknown; choose from {', '.join(map(str, choices))}".lower())
    if isinstance(config, EvalConfig) and config.overlap > config.chunk / 2:
        raise UsageError(f"overlap={config.overlap} must be at most half of chunk={config.chunk} seconds")


def _check_stft(config: TrainConfig) -> None:
    data, stft = config.data, config.stft
    if not data.sources or len(set(data.sources)) < len(data.sources):
        raise UsageError(f"data.sources={data.sources} must name at least one source, and each only once")
    samples = round(data.excerpt * data.sample_rate)
    if samples < stft.n_fft:
        raise UsageError(
            f"data.excerpt={data.excerpt} s is {samples} samples at {data.sample_rate} Hz, shorter than one STFT "
            f"window ({stft.n_fft}); use at least data.excerpt={stft.n_fft / data.sample_rate:g}"
        )


def lookup(config: Any, key: str) -> Any:
    """The value at a dotted key of nested dataclasses and mappings, or None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


# ----------------------------------------------------------------------------------------------------------------------
# building


def build(spec: Mapping[str, Any], where: str, trust: Sequence[str] | None = None, **context: Any) -> Any:
    """Make what `spec` names: `_target_` called with its other keys, and with what of `context` it takes.

    spec: `{_target_: package.module.Name, key: value, ...}`, nested specs allowed; `_partial_: true` gives the
    function with its arguments bound, for what is called later.  where: the name of the section, for errors.
    context: values that a configuration cannot know (sizes, the target of a loss).
    trust: the package prefixes that may be imported; None trusts all, as in the user's own configuration.
    """
    name = spec.get("_target_")
    if not isinstance(name, str) or "." not in name:
        raise UsageError(f"{where}._target_={name} must be the dotted name of a class or function")
    if trust is not None and not name.startswith(tuple(trust)):
        raise UsageError(
            f"{where}._target_={name} comes from a package that is not trusted; if you trust the file it stands in, "
            f"allow it with --trust {name.split('.')[0]} (in Python: trust=['{name.split('.')[0]}'])"
        )
    target = _import(name, where)
    arguments = {key: value for key, value in spec.items() if key not in ("_target_", "_partial_")}
    arguments = {
        key: build(value, f"{where}.{key}", trust, **context) if _is_spec(value) else value
        for key, value in arguments.items()
    }
    parameters = inspect.signature(target).parameters
    _check_arguments(where, name, arguments, parameters, context)
    arguments.update({key: value for key, value in context.items() if key in parameters})
    if spec.get("_partial_"):
        return functools.partial(target, **arguments) if arguments else target
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _import(name: str, where: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{where}._target_={name} cannot be imported: {error}") from None
    if not hasattr(found, attribute):
        near = nearest(attribute, [n for n in dir(found) if not n.startswith("_")])
        raise UsageError(f"{where}._target_={name}: {module} has no {attribute}; {near}")
    return getattr(found, attribute)


def _check_arguments(
    where: str, name: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], context: Mapping
) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    free = [key for key in parameters if key not in context and key not in ("self", "params")]
    for key, value in given.items():
        if key not in free:
            raise UsageError(f"there is no key {where}.{key} ({name}); {nearest(key, free)}")
        default = parameters[key].default
        if not _fits(value, parameters[key].annotation, default):
            kind = parameters[key].annotation if isinstance(parameters[key].annotation, str) else type(default).__name__
            example = "" if default is inspect.Parameter.empty else f", e.g. {where}.{key}={default}"
            raise UsageError(f"{where}.{key}={value} must be of type {kind}{example}")


def _fits(value: Any, annotation: Any, default: Any) -> bool:
    """Whether a plain value is of the annotated plain type; of other annotations only numbers are told from text."""
    if isinstance(default, float) and isinstance(value, (str, bool)):
        return False
    names = annotation.split(" | ") if isinstance(annotation, str) else [getattr(annotation, "__name__", "")]
    plain: dict[str, tuple[type, ...]] = {
        "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)
    }  # fmt: skip
    if any(name not in plain for name in names):
        return True
    kinds = tuple(kind for name in names for kind in plain[name])
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def trusted(packages: Sequence[str]) -> tuple[str, ...]:
    """What a configuration out of a checkpoint may build: our own classes, and those of packages the user names."""
    return (*OURS, *(f"{package}." for package in packages))


def targets_in(config: Any) -> list[str]:
    """Every `_target_` that a configuration names."""
    if not isinstance(config, Mapping):
        return []
    own = [config["_target_"]] if "_target_" in config else []
    return own + [name for value in config.values() for name in targets_in(value)]


def build_separator(config: Mapping[str, Any], trust: Sequence[str] | None = None) -> Separator:
    """The separator of a resolved training configuration, with fresh weights."""
    from separate.separator import Separator
    from separate.stft import STFT

    data = config["data"]
    try:
        stft = STFT(**config["stft"])
    except ValueError as error:
        raise UsageError(f"stft: {error}") from None
    network = build(
        config["model"],
        "model",
        trust,
        sources=len(data["sources"]),
        channels=data["channels"],
        bins=stft.bins,
        sample_rate=data["sample_rate"],
    )
    return Separator(network, stft, data["sources"], data["sample_rate"], data["channels"], data["interchangeable"])


def build_loss(config: Mapping[str, Any], separator: Separator, trust: Sequence[str] | None = None) -> Loss:
    """The loss of a resolved training configuration; UsageError for a target or a model that it cannot work with."""
    target = build(config["target"], "target", trust)
    loss: Loss = build(config["loss"], "loss", trust, target=target, interchangeable=config["data"]["interchangeable"])
    name = config["loss"]["_target_"].rpartition(".")[2]
    domain = getattr(target, "domain", None) or getattr(getattr(target, "func", None), "domain", None)
    if domain != loss.domain:
        from separate import targets

        works = [key for key, value in vars(targets).items() if getattr(value, "domain", None) == loss.domain]
        raise UsageError(
            f"{name} compares {loss.domain}s and target={config['target']['_target_'].rpartition('.')[2]} is a "
            f"{domain}; it works with target={', '.join(works)}"
        )
    if loss.needs != "estimates" and loss.needs not in separator.network.provides:
        raise UsageError(
            f"{name} needs {loss.needs}, and {type(separator.network).__name__} provides "
            f"{', '.join(separator.network.provides)}; use loss=si_sdr, or a model with {loss.needs}: model=blstm"
        )
    return loss
