"""Convert errors of Hydra and OmegaConf to one sentence, with the nearest valid name."""

from __future__ import annotations

import re

from separate.config import TrainConfig
from separate.errors import nearest
from separate.validation import options


def explain(error: BaseException) -> str:
    """The message for an error in the composition of the configuration."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], error)
    if found := re.search(r"Could not find '([^']+)/([^'/]*)'\s+Available options in '[^']+':((?:\n\t.*)*)", text):
        group, choice, choices = found[1], found[2], found[3].split()
        near = nearest(choice, choices)
        listed = "" if near.startswith("choose") else f" (there are {', '.join(sorted(choices))})"
        return f"there is no {group}={choice}; {near}{listed}"
    if "integer string conversion" in text:
        return "a value on the command line is an integer with too many digits; use a smaller one"
    if "Config group override" in text or isinstance(error, TypeError):
        return "a group is chosen by a name, as in scheduler=none; --help lists the names"
    if override := getattr(error, "override", None):
        return f"{override} is not KEY=VALUE; quote a value with spaces, commas or signs twice: 'KEY=\"a=b, c\"'"
    return " ".join(text.split())


def _unknown_key(key: str, error: BaseException) -> str:
    if key in options(TrainConfig):  # valid, but not listed in conf/train.yaml
        return f"there is no key {key} yet; add it with +{key}=VALUE"
    cause: BaseException | None = error
    while cause is not None:
        parent = getattr(cause, "parent_node", None)
        if parent is not None and hasattr(parent, "keys"):
            near = nearest(str(getattr(cause, "key", key)), [str(name) for name in parent if name != "_target_"])
            more = f" (+{key}=VALUE adds one that {parent['_target_']} takes)" if "_target_" in parent else ""
            return f"there is no key {key}; {near}{more}"
        cause = cause.__cause__
    return f"there is no key {key}; see --help"
