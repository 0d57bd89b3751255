"""The identity of a job: a hash of its configuration, which names its folder and so survives a changed grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# keys that say where and how fast a job runs, not what it trains
IGNORED = (
    "run", "resume", "summary", "trust", "device", "data.workers", "cache.folder", "cache.limit", "logger",
    "trainer.threads", "trainer.save_every", "trainer.max_hours",
)  # fmt: skip


def job_hash(config: DictConfig) -> str:
    """8 hexadecimal digits of the resolved configuration without Hydra's section and without `IGNORED`."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException:  # the job itself names the key that cannot be resolved
        values = OmegaConf.to_container(own, resolve=False)
    assert isinstance(values, dict)
    kept = _without(values, IGNORED)
    if values.get("resume") not in (None, True, False, "auto"):
        kept["resume"] = values["resume"]  # the path of a run to start from
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]


def ignored(key: str) -> bool:
    """Whether `key` is one of `IGNORED` or lies in one of them."""
    return any(f"{key}.".startswith(f"{name}.") for name in IGNORED)


def refused_key(config: DictConfig) -> str | None:
    """An ignored key that the command gives several values: all its jobs would have one identity.

    config: of the sweep, with Hydra's section.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params: Any = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    for override in OverridesParser.create().parse_overrides(given):
        key = override.key_or_group
        if override.is_sweep_override() and ignored(key):
            return key
    return None


def _without(values: Any, names: tuple[str, ...], prefix: str = "") -> Any:
    if not isinstance(values, Mapping):
        return values
    kept = {key: value for key, value in values.items() if f"{prefix}{key}" not in names}
    return {key: _without(value, names, f"{prefix}{key}.") for key, value in kept.items()}
