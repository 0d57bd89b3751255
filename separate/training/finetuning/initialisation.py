"""Initial weights from a checkpoint (`init`): load those that fit the network, and report all others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from separate import checkpoint
from separate.config import lookup, shipped
from separate.errors import MISFIT, UsageError
from separate.models.representation import observers
from separate.separator import Separator
from separate.validation import brief

log = logging.getLogger(__name__)

LISTED = 4  # most names in a line of the report
DATA = ("sources", "channels", "interchangeable")  # keys of data that the weights depend on


@dataclass
class Match:
    """The comparison of the weights of a checkpoint with those of a network.

    fitting: {name: stored value} of equal shape and kind; shapes: {name: description} of the others in both; new: names
    only in the network; left: names only in the checkpoint.
    """

    fitting: dict[str, Tensor]
    shapes: dict[str, str]
    new: list[str]
    left: list[str]

    @classmethod
    def of(cls, network: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Match:
        both = [name for name in network if name in stored]
        fitting = {name: stored[name] for name in both if _alike(network[name], stored[name])}
        return cls(
            fitting,
            {
                name: f"{name} {_shape(network[name])}, was {_shape(stored[name])}"
                for name in both
                if name not in fitting
            },
            [name for name in network if name not in stored],
            [name for name in stored if name not in network],
        )


def initialise(separator: Separator, config: Mapping[str, Any]) -> set[str]:
    """Load the weights of the checkpoint `init` that fit the network, and report all others.

    Returns the names of the weights that keep their random values.  Loads only tensors; the configuration of the
    checkpoint serves for the comparison.  UsageError for another class of network, another sample rate, and a
    checkpoint without a parameter that fits.
    """
    where = f"init={brief(config['init'])}"
    try:
        contents = checkpoint.read(checkpoint.find(config["init"]))
    except UsageError as error:
        raise UsageError(f"init: {error}") from None
    saved = contents["config"]
    _check_kind(where, saved, config)
    stored = {name: value for name, value in contents["model"].items() if name.startswith("network.")}
    network = {name: value for name, value in separator.state_dict().items() if name.startswith("network.")}
    match, changes = Match.of(network, stored), _changes(saved, config)
    parameters = {f"network.{name}": value.numel() for name, value in separator.network.named_parameters()}
    loaded = sum(parameters.get(name, 0) for name in match.fitting)
    if not loaded:
        reason = f"the configurations differ in {'; '.join(changes)}" if changes else "the names or shapes differ"
        raise UsageError(f"{where}: no weight of this checkpoint fits the network: {reason}; use its configuration")
    try:
        separator.load_state_dict(match.fitting, strict=False)
    except RuntimeError as error:  # tensors that are sparse, quantised ...
        raise UsageError(f"{where}: {MISFIT}: {brief(error)}") from None
    _keep_statistics(separator.network, match.fitting)
    share = f"{loaded:,} of {sum(parameters.values()):,} parameters loaded"
    _report(f"{where}{_origin(contents)}: {share}", match, changes)
    return {name.removeprefix("network.") for name in (*match.shapes, *match.new)}


def _check_kind(where: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    there, here = saved["model"].get("_target_"), config["model"]["_target_"]
    if there != here:
        names = [name for name, spec in shipped("model").items() if spec["_target_"] == there]
        hint = f"model={' or model='.join(names)}" if names else f"model._target_={brief(there)}"
        raise UsageError(f"{where} is a {brief(there)} and this run trains a {here}; choose {hint}")
    there, here = lookup(saved, "data.sample_rate"), lookup(config, "data.sample_rate")
    if there != here:
        raise UsageError(
            f"{where} was trained at {brief(there)} Hz and this run has data.sample_rate={here}, at which its filters "
            f"mean other frequencies; set data.sample_rate={brief(there)}"
        )


def _changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """`key=value (was value)` for each key of data, STFT and model that differs between the configurations."""
    keys = {"data": DATA, "stft": list(config["stft"]), "model": list(config["model"])}
    pairs = {
        f"{section}.{key}": (saved[section][key], config[section].get(key))
        for section, names in keys.items()
        for key in names
        if key in saved[section]  # the checkpoint may be older than the key
    }
    pairs["outputs"] = saved.get("outputs"), config.get("outputs")
    return [f"{key}={brief(b)} (was {brief(a)})" for key, (a, b) in pairs.items() if brief(a) != brief(b)]


def _keep_statistics(network: nn.Module, fitting: Mapping[str, Tensor]) -> None:
    """Mark the normalisations with loaded statistics, so that they are not measured again."""
    names = {part: name for name, part in network.named_modules()}
    for part in observers(network):
        normalise = f"network.{names[part]}.normalise"
        part.normalise.known = {f"{normalise}.shift", f"{normalise}.scale"} <= fitting.keys()


def _report(headline: str, match: Match, changes: Sequence[str]) -> None:
    """Log one block; a warning if weights were not loaded or the sources have changed."""
    lines = [
        ("of another shape, so initialised randomly", list(match.shapes.values())),
        ("not in the checkpoint, so initialised randomly", match.new),
        ("only in the checkpoint, so left out", match.left),
        ("the configurations differ in", changes),
    ]
    text = "\n".join([headline, *(f"  {what}: {_listed(names)}" for what, names in lines if names)])
    incomplete = match.shapes or match.new or match.left or any(one.startswith("data.sources=") for one in changes)
    log.log(logging.WARNING if incomplete else logging.INFO, "%s", text)


def _origin(contents: Mapping[str, Any]) -> str:
    """The licence of the data that a checkpoint was trained on, for the headline."""
    licence = contents.get("licence")
    return f" (trained on data under {brief(licence)})" if licence else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return "; ".join([*names[:LISTED], *([f"{more} more"] if more > 0 else [])])


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_complex() == b.is_complex() and a.is_floating_point() == b.is_floating_point()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
