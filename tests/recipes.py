"""Recipes of the READMEs, followed exactly: their files are written and their commands are run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from separate.cli import evaluate, infer, train
from tests.conftest import TINY_TOY

ROOT = Path(__file__).parents[1]
PROGRAMS = {"separate-train": train, "separate-eval": evaluate, "separate-infer": infer}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Recipe:
    """A recipe whose files are in `folder`.  commands: its shell commands, each split into words."""

    folder: Path
    call: Callable[..., tuple[int, str, str]]
    commands: list[list[str]] = field(default_factory=list)

    def follow(self, readme: str, heading: str) -> Recipe:
        """Write the files of a section of a README and collect its commands.

        A file is a fenced block whose first line is a comment with its path; commands are the lines of `sh` blocks.
        """
        for module in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
            del sys.modules[module]  # of another recipe
        section = (ROOT / readme).read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert section, f"{readme} has no section {heading}"
        for language, content in BLOCK.findall(section):
            if language == "sh":
                lines = content.replace("\\\n", " ").splitlines()
                self.commands += [words for line in lines if (words := shlex.split(line, comments=True))]
            else:
                path = self.folder / content.partition("\n")[0].removeprefix("# ")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, "utf-8")
        return self

    def run(self, number: int, *arguments: str, without: str | None = None) -> tuple[int, str, str]:
        """Run a command, with a tiny training and without the word `without` -> (exit code, stdout, stderr)."""
        name, *words = self.commands[number]
        if without is not None:
            words.remove(without)
        tiny = TINY_TOY if name == "separate-train" and "resume=true" not in words else []
        device = ["device=cpu"] if name == "separate-eval" else []
        return self.call(PROGRAMS[name], *words, *tiny, *device, *arguments, cwd=self.folder)
