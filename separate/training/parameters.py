"""Parameters by name, and the parameter groups of an optimizer: weight decay and learning rates."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from separate.errors import UsageError
from separate.validation import brief

MOST_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class GroupOptions:
    """lr, weight_decay: of the optimizer, None if it has none.  decay: weights or all.  rates: {pattern: factor}."""

    lr: float | None
    weight_decay: float | None
    decay: str = "weights"
    rates: Mapping[str, float] = field(default_factory=dict)


def matching(names: Iterable[str], patterns: Iterable[str], key: str) -> dict[str, list[str]]:
    """The names that match each pattern (`*`, `?`, `[...]`).  key: the key of the patterns, for messages.

    UsageError for a pattern without a match; the message lists the nearest names.
    """
    names = list(names)
    found = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, matched in found.items():
        if not matched:
            near = difflib.get_close_matches(pattern.strip("*"), names, n=MOST_SHOWN, cutoff=0.0)
            raise UsageError(f"{key}: {brief(pattern)} matches nothing; the nearest are {', '.join(near) or 'none'}")
    return found


def parameter_groups(network: nn.Module, options: GroupOptions) -> Sequence[Tensor] | list[dict[str, Any]]:
    """The trainable parameters for an optimizer, in groups if their weight decay or learning rate differ.

    With `decay=weights` only parameters with `is_weight` decay.  The learning rate of a parameter is the optimizer's,
    times the factor of each pattern that matches its name.  Without differences: the parameters in network order.
    """
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UsageError(
            "no parameter of the network is trained, so there is nothing to optimize; leave some trainable"
        )
    factors = dict.fromkeys(trainable, 1.0)
    for pattern, names in matching(trainable, options.rates, "trainer.rates").items():
        for name in names:
            factors[name] *= options.rates[pattern]
    if options.rates and options.lr is None:
        raise UsageError(
            "trainer.rates multiply optimizer.lr, which is no number here; set it, or leave trainer.rates out"
        )
    split = bool(options.weight_decay) and options.decay == "weights"
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in trainable.items():
        groups.setdefault((factors[name], not split or is_weight(network, name)), []).append(parameter)
    if len(groups) == 1 and next(iter(groups)) == (1.0, True):
        return list(trainable.values())
    made = []
    # the group with the optimizer's own rate first, because the log shows the rate of the first group
    for (factor, decays), parameters in sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, not item[0][1])):
        group: dict[str, Any] = {"params": parameters}
        if factor != 1.0:
            assert options.lr is not None
            group["lr"] = factor * options.lr
        made.append(group if decays else {**group, "weight_decay": 0.0})
    return made


def is_weight(network: nn.Module, name: str) -> bool:
    """Whether a parameter is a matrix or a kernel: no bias, not of a norm, at least two dimensions larger than 1."""
    place, _, own = name.rpartition(".")
    parameter, owner = network.get_parameter(name), type(network.get_submodule(place)).__name__
    dimensions = sum(size > 1 for size in parameter.shape)
    return dimensions > 1 and "norm" not in owner.lower() and not own.startswith("bias")


def without_frozen(saved: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Remove the frozen parameters from the saved state of an optimizer.

    Older runs gave all parameters to the optimizer, in one group.  Any other state is returned unchanged.
    """
    parameters = list(network.parameters())
    kept = [place for place, parameter in enumerate(parameters) if parameter.requires_grad]
    groups = saved["param_groups"]
    if len(groups) != 1 or len(groups[0]["params"]) != len(parameters) or len(kept) == len(parameters):
        return dict(saved)
    state = {new: saved["state"][old] for new, old in enumerate(kept) if old in saved["state"]}
    return {"state": state, "param_groups": [{**groups[0], "params": list(range(len(kept)))}]}
