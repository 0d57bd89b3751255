"""Add the comments of the files in `conf/` to a printed configuration; Hydra removes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

SECTION = re.compile(r"(\w+):$")
ENTRY = re.compile(r"(\s*)(\w+):")
COMMENTED = re.compile(r"(\w+):.*?\s#\s(.+)")
CHOICE = re.compile(r"\s+_target_: (\S+)")  # identifies the file of a group


def annotate(text: str, primary: str) -> str:
    """The YAML of a configuration with the comment of each key, `# unit or meaning`.

    primary: train, eval or dataset, the configuration that the others are composed into.
    """
    lines = text.splitlines()
    top = _comments([_conf() / f"{primary}.yaml"])
    known, annotated = top, []
    for number, line in enumerate(lines):
        if not line.startswith(" ") and not line.startswith("-"):
            section = SECTION.match(line)
            known = _of_section(section[1], lines[number + 1 :]) if section else top
        entry = ENTRY.match(line)
        comment = None
        if entry and len(entry[1]) <= 2:
            comment = (known if entry[1] else top).get(entry[2])
        annotated.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(annotated)


def _of_section(group: str, following: list[str]) -> dict[str, str]:
    """The comments in the file of a section, in conf/GROUP.  following: the lines below the name of the section."""
    folder = _conf() / group
    if not folder.is_dir():
        return {}
    files = sorted(folder.glob("*.yaml"))
    for line in following:
        if not line.startswith(" "):
            break
        if choice := CHOICE.match(line):
            files = [file for file in files if re.search(rf"^_target_: {choice[1]}$", file.read_text("utf-8"), re.M)]
            break
    return _comments(files)


def _comments(files: Iterable[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            if commented := COMMENTED.match(line):
                found.setdefault(commented[1], commented[2])
    return found


def _conf() -> Path:
    return Path(str(resources.files("separate.conf")))
