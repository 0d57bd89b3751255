"""What Hydra and OmegaConf refuse, said in one sentence with the nearest right name."""

from __future__ import annotations

import re

from separate.errors import nearest


def explain(error: BaseException) -> str:
    """The sentence for an error of composing the configuration."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], error)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':\s+(.*)", text, re.DOTALL):
        group, choice = found[1], found[2]
        choices = [line.strip() for line in found[3].splitlines() if line.strip()]
        return f"there is no {group}={choice}; choose from {', '.join(choices)}"
    if "Could not override" not in text and (found := re.search(r"In '[^']+': (Could not find '[^']+')", text)):
        return found[1]
    return " ".join(text.split())


def _unknown_key(key: str, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        parent = getattr(cause, "parent_node", None)
        if parent is not None and hasattr(parent, "keys"):
            keys = [str(name) for name in parent]
            near = nearest(str(getattr(cause, "key", key)), keys)
            return f"there is no key {key}; {near} (your own keys are added with +{key}=VALUE where a class takes them)"
        cause = cause.__cause__
    return f"there is no key {key}; see --help"
