"""Check the configuration of a program, composed by Hydra or stored in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import isabstract
from typing import TYPE_CHECKING, Any, TypeVar

from separate.config import CacheConfig, DatasetConfig, EvalConfig, STFTConfig, TrainConfig, shipped
from separate.errors import MISFIT, UsageError, nearest
from separate.instantiate import find_target, trusted
from separate.validation import brief, check_plain, typed, validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from separate.data.layouts.base import Layout

Config = TypeVar("Config", TrainConfig, EvalConfig, DatasetConfig)


def from_hydra(cfg: DictConfig, schema: type[Config]) -> Config:
    """The composed configuration as a dataclass; UsageError for values that are invalid or do not fit together."""
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
        _check_accumulation(config)
    return config


def data_config(values: Any, trust: Sequence[str] | None = None) -> Layout:
    """Build the layout of a data section: an instance of the class `_target_`, with its other keys as fields.

    trust: as in `instantiate.build`.  UsageError for invalid keys and values.
    """
    from separate.data.layouts.base import Layout

    if not isinstance(values, Mapping):
        raise UsageError(f"data={brief(values)} must be a section of keys with values")
    kind = find_target(values, "data", trust)
    if not isinstance(kind, type) or not issubclass(kind, Layout) or isabstract(kind):
        raise UsageError(
            f"data._target_={values['_target_']} is not a layout; name a dataclass derived from "
            f"separate.data.layouts.base.Layout that implements its methods"
        )
    config: Layout = typed(kind, values, "data.")
    return config


def evaluation_data(trained_on: Mapping[str, Any], chosen: Mapping[str, Any], trust: Sequence[str] = ()) -> Layout:
    """The data to evaluate on: those chosen by the user, or those of the training with the user's changes.

    trust: packages besides separate from which the layout of the training may come.
    """
    if chosen.get("_target_") is not None:
        return data_config(chosen)
    changes = {key: value for key, value in chosen.items() if value is not None}
    return data_config({**trained_on, **changes}, trusted(trust))


def with_target(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data section of a checkpoint; in older ones `layout` names a file of conf/data instead of its class."""
    if "layout" not in data:
        return dict(data)
    layouts, name = shipped("data"), data["layout"]
    if not isinstance(name, str) or name not in layouts:
        raise UsageError(f"data.layout={brief(name)} is unknown; {nearest(brief(name), layouts)}")
    rest = {key: value for key, value in data.items() if key != "layout"}
    return {"_target_": layouts[name]["_target_"], **rest}


def check_overlap(chunk: float, overlap: float, prefix: str = "") -> None:
    """UsageError if the two cross-fades of a chunk would overlap.  chunk, overlap: seconds; prefix: of their names."""
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


def _check_accumulation(config: TrainConfig) -> None:
    if config.batch_size != "auto" and config.trainer.accumulate > config.batch_size:
        raise UsageError(
            f"trainer.accumulate={config.trainer.accumulate} splits a batch into more parts than batch_size="
            f"{config.batch_size} has examples; use at most trainer.accumulate={config.batch_size}"
        )


def check_stored(config: Any) -> None:
    """UsageError for the configuration of a checkpoint that is incomplete, not plain, too large or out of range.

    Sections for training only are checked when the run is resumed.
    """
    from separate.data.layouts.base import Layout

    check_plain(config)
    if not isinstance(config, Mapping):
        raise UsageError("its configuration is not a section of keys with values")
    for section in ("data", "stft", "model", "seed"):
        if section not in config:
            raise UsageError(f"{MISFIT}: it has no {section}")
    for section, schema in (("data", Layout), ("stft", STFTConfig), ("cache", CacheConfig)):
        if section in config:
            validate(schema, config[section], f"{section}.")
    used = ("model", "outputs", "consistency", "rescale", "input_level", "seed")
    validate(TrainConfig, {key: config[key] for key in used if key in config})
