"""The text of `--help`, read from the files in `conf/` in 0.1 seconds; Hydra takes 0.6 seconds to compose it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^(\w+):.*\n(?:[ \t-].*\n|\n)*", re.MULTILINE)  # a top-level key with its indented lines


def help_text(primary: str) -> str:
    """The help: header, groups with their choices, keys with their defaults and comments, footer.

    primary: train, eval or dataset, the configuration that the others are composed into.
    """
    import yaml

    conf = Path(str(resources.files("separate.conf")))
    chosen: dict[str, str | None] = {}
    for entry in yaml.safe_load((conf / f"{primary}.yaml").read_text("utf-8"))["defaults"]:
        chosen.update(entry if isinstance(entry, dict) else {})
    parts: dict[str, Any] = yaml.safe_load(
        (conf / f"hydra/help/{chosen['override hydra/help']}.yaml").read_text("utf-8")
    )
    keys = "".join([*_keys(conf / f"{primary}.yaml"), *_sections(conf, chosen)]).rstrip()
    values = {"${hydra.help.header}": parts["header"], "${hydra.help.footer}": parts["footer"]}
    values |= {"$APP_CONFIG_GROUPS": "\n".join(_groups(conf)), "$CONFIG": keys}
    text: str = parts["template"]
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _groups(conf: Path) -> Iterator[str]:
    """`group: choice, choice` of each folder."""
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir()):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        group = folder.relative_to(conf).as_posix()
        if names and not group.startswith("hydra"):
            yield f"{group}: {', '.join(names)}"


def _sections(conf: Path, chosen: dict[str, str | None]) -> Iterator[str]:
    """The default choice of each group, with its keys."""
    for group, choice in chosen.items():
        if choice is None or group.startswith("override"):
            continue
        keys = "".join(_keys(conf / group / f"{choice}.yaml"))
        yield f"{group}: {choice}\n{textwrap.indent(keys, '  ')}"


def _keys(file: Path) -> Iterator[str]:
    """The lines of each key in a configuration file."""
    for block in BLOCK.finditer(f"{file.read_text('utf-8')}\n"):
        if block[1] not in ("defaults", "hydra"):
            yield f"{block[0].rstrip()}\n"
