"""The READMEs: every command and snippet runs, and every link has a target.

The commands of a README run in its order in one folder, in this process.  Trainings are made as small as `debug=fast`
makes them, with networks of tests/tiny.py.  Missing data, recordings and runs that a command names are
made first.  A block is written to a file if its first line is a comment with a path, or the text before it ends with
one.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import separate.compose
from separate.cli import data, evaluate, infer, train
from separate.config import DatasetConfig, TrainConfig, shipped
from separate.training.profiling import WARM_UP
from tests.conftest import write
from tests.datasets import INPUTS, write_data
from tests.tiny import MODELS

ROOT = Path(__file__).parents[1]
ROOMS = ("conf", "scripts", "separate", "tests")
READMES = [ROOT / "README.md", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("README.md"))]
SHELLS, PYTHONS = ("sh", "bash", "shell", "console"), ("python", "py")
PROGRAMS = {"separate-train": train, "separate-eval": evaluate, "separate-infer": infer, "separate-data": data}
COMMANDS = (*PROGRAMS, "make", "python", "pip", "source", "export", "git")  # in blocks that name no language
PLACEHOLDERS = ("DIR", "FILE")  # of a data set; DIR also stands for a folder of configurations
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)

BENCHMARK = "a benchmark of minutes; tests/test_scripts.py runs one case"
WORKERS = "networks are made smaller in this process only; tests/test_sweeps.py trains with launchers"
REMOTE = "the shards lie on a server; tests/test_shards.py fetches some from a local one"
TESTS = "it runs these tests"
NOT_RUN = {
    "separate-train -m optimizer.lr=1e-3,3e-4 hydra/launcher=joblib hydra.launcher.n_jobs=2": WORKERS,
    "separate-train -m optimizer.lr=1e-3,3e-4 hydra/launcher=submitit_local": WORKERS,
    "separate-train -m optimizer.lr=1e-3,3e-4 hydra/launcher=submitit_slurm hydra.launcher.partition=main "
    "hydra.launcher.gpus_per_node=1 hydra.launcher.timeout_min=600": "it needs Slurm",
    'python -m pytest -m "not slow"': TESTS,
    "python -m pytest tests/test_stft.py": TESTS,
    "source .venv/bin/activate": "the tests run in an environment already",
    "python scripts/prepare_musdb18hq.py musdb18hq.zip data/musdb18hq": "it takes the published archive of 22 GB; "
    "tests/test_scripts.py unpacks a small one",
    "python scripts/bench.py kmeans pit --rounds 15": BENCHMARK,
    "python scripts/bench_data.py loading --rounds 7": BENCHMARK,
    "python scripts/bench_training.py blstm --threads 1 2": BENCHMARK,
    "python scripts/bench_training.py blstm --busy": BENCHMARK,
    "python scripts/bench_training.py --loop --steps 50 --threads 1": BENCHMARK,
    "python scripts/bench_training.py --peak --threads 1": BENCHMARK,
    "separate-train data=shards data.root=https://HOST/PATH 'data.sources=[vocals,drums,bass,other]' "
    "\"data.splits.train='train-{000000..000146}.tar'\"": REMOTE,
    "separate-train data=shards 'data.sources=[vocals,drums,bass,other]' "
    "\"data.root='pipe:aws s3 cp s3://BUCKET/PATH'\" \"data.splits.train='train-{000000..000146}.tar -'\"": REMOTE,
}

OWN_CONFIGS = {  # what `--config-dir DIR` holds where a README does not say
    "model/mine.yaml": "_target_: package.module.Mine\n",
    "experiment/mine.yaml": "# @package _global_\nbatch_size: 8\n",
}
OWN_PACKAGE = """
import torch

class Mine(torch.nn.Module):
    provides = ("masks",)

    def __init__(self, sources: int):
        super().__init__()
        self.gains = torch.nn.Parameter(torch.full((sources, 1, 1, 1), 0.5))

    def forward(self, spectrogram):
        return {"masks": self.gains.expand(len(spectrogram), -1, *spectrogram.shape[1:])}
"""


# ------------------------------------------------------------------------------------------------------------- parsing


@dataclass(frozen=True)
class Block:
    line: int  # of its first line in the README
    language: str  # of a fence; empty for one without, and for an indented block
    text: str
    before: str = ""  # the last line of text before it


def blocks(markdown: str) -> Iterator[Block]:
    """The fenced and the indented blocks, in order."""
    lines = [*markdown.splitlines(), ""]
    number, above, before = 0, "", ""  # the line above, the last line of text
    while number < len(lines):
        start, line = number, lines[number]
        if fence := re.match(r"( *)(```+)\s*(\w*)", line):
            number = next(n for n in range(start + 1, len(lines)) if lines[n].strip() == fence[2])
            text = "\n".join(one.removeprefix(fence[1]) for one in lines[start + 1 : number])
            yield Block(start + 2, fence[3], text, before)
        elif line.startswith("    ") and line.strip() and not above.strip():
            while number + 1 < len(lines) and (lines[number + 1].startswith("    ") or not lines[number + 1].strip()):
                number += 1
            yield Block(start + 1, "", dedent("\n".join(lines[start : number + 1])).rstrip(), before)
        else:
            before = line.strip() or before
        above = lines[number]
        number += 1


def commands(block: Block) -> list[str]:
    """The commands of a block, one line each."""
    if block.language not in ("", *SHELLS):
        return []
    joined = re.sub(r"\s*\\\n\s*", " ", block.text)
    lines = [re.sub(r"\s{2,}#\s.*", "", line.removeprefix("$ ")).strip() for line in joined.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if block.language:
        return lines
    return [line for line in lines if line.split()[0] in COMMANDS or re.match(r"[A-Z_]+=", line)]


def is_python(block: Block) -> bool:
    if block.language or not re.match(r"(import|from|class|def|@)\b", block.text):
        return block.language in PYTHONS
    try:
        ast.parse(block.text)
    except SyntaxError:
        return False
    return True


def file_of(block: Block) -> str | None:
    """The path of the file that a block shows."""
    path = r"([\w./-]+\.(?:py|yaml|jsonl?))"
    found = re.match(rf"# *{path}\n", block.text) or re.search(rf"`{path}`:$", block.before)
    return found[1] if found and block.language not in SHELLS else None


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------------------- running


def smaller(config: Any) -> Any:
    """A configuration as small as `debug=fast`, for training with a network of tests/tiny.py on the CPU."""
    fast = shipped("debug")["fast"]
    few = {"tracks": {"train": 2, "valid": 2, "test": 2}, "examples": 2}
    if isinstance(config, (TrainConfig, DatasetConfig)) and config.data is not None:
        given = {**fast["data"], **{key: value for key, value in few.items() if key in vars(config.data)}}
        vars(config.data).update(given)
    if not isinstance(config, TrainConfig):
        return config
    vars(config.trainer).update(fast["trainer"])
    if config.trainer.profile:
        config.trainer.steps_per_epoch = WARM_UP + config.trainer.profile
    config.trainer.overfit = config.trainer.overfit and 2
    config.batch_size = fast["batch_size"]
    config.trainer.threads, config.logger.tensorboard, config.device = 1, False, "cpu"
    for model, spec in shipped("model").items():
        if spec["_target_"] == config.model["_target_"]:
            config.model.update(MODELS[model])
    return config


@dataclass
class Reader:
    """Someone who goes through a README in a folder and does what it says."""

    folder: Path
    trained: Path  # a run
    call: Callable[..., tuple[int, str, str]]
    monkeypatch: pytest.MonkeyPatch
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    namespace: dict[str, Any] = field(default_factory=dict)

    def run(self, command: str) -> None:
        words = self.expand(command)
        while words and (words[0] == "export" or ASSIGNMENT.fullmatch(words[0])):
            key, _, value = words.pop(0).partition("=")
            if key != "export":
                self.environment[key] = value
                self.monkeypatch.setenv(key, value)
        if not words:
            return
        if words[0] in PROGRAMS:
            self.program(words[0], words[1:])
        elif words[0] == "make":
            known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            unknown = [word for word in words[1:] if "=" not in word and word not in known]
            assert not unknown, f"the Makefile has no target {unknown}"
        elif words[0] == "pip":
            files = [file for option, file in pairwise(words) if option in ("-c", "-r")]
            assert all((ROOT / file).is_file() for file in files), f"a file of {files} does not exist"
        elif words[0] == "python":
            script, arguments = ROOT / words[1], self.with_data(words[2:])
            if script.name in INPUTS:
                INPUTS[script.name](*(self.folder / word for word in arguments))
            done = subprocess.run(
                [sys.executable, str(script), *arguments],
                capture_output=True, text=True, timeout=200, cwd=self.folder, env=self.environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
        else:
            raise AssertionError(f"{words[0]} is not run here; name the command in NOT_RUN, with a reason")

    def expand(self, command: str) -> list[str]:
        """The words of a command after bash has replaced braces, variables and quotes."""
        operators = [token for token in shlex.shlex(command, punctuation_chars=True) if set(token) <= set("|&;<>")]
        assert not operators, f"{operators} cannot be run here; write one program a line, or name it in NOT_RUN"
        printed = subprocess.run(
            ["bash", "-c", rf"printf '%s\0' {command}"],
            capture_output=True, text=True, check=True, cwd=self.folder, env=self.environment,
        )  # fmt: skip
        return printed.stdout.split("\0")[:-1]

    def program(self, program: str, arguments: list[str]) -> None:
        options = dict(word.split("=", 1) for word in arguments if "=" in word)
        arguments = self.with_data(arguments)
        for option, place in pairwise(arguments):
            if option == "--config-dir":
                self.write_configs(place)
        if program == "separate-train":
            run = options.get("hydra.run.dir", options.get("run"))
            if run and options.get("resume", "false") == "false":
                shutil.rmtree(self.folder / run, ignore_errors=True)
            elif run and options["resume"] == "true":
                self.have_run(run)
            while any(self.folder.glob(f"*run*/{datetime.now():%Y-%m-%d/%H-%M-%S}")):  # two runs in one second
                time.sleep(0.1)
        elif program == "separate-eval" and arguments[:1] == ["compare"]:
            for run, split in (place.split("/eval/") for place in arguments[1:]):
                self.have_run(run)
                if not (self.folder / run / "eval" / split).exists():
                    self.program("separate-eval", [f"run={run}", f"split={split}"])
        elif program == "separate-eval" and "estimates" in options:
            for folder in (options["estimates"], options["references"]):
                for source in ("vocals", "other"):
                    self.have_recording(f"{folder}/song/{source}.wav")
        elif program == "separate-eval":
            self.have_run(options.get("run"))
            if "data" in options and "run" not in options:  # a run on such sources
                chosen = [word for word in arguments if word.startswith("data")]
                self.program("separate-train", [*chosen, f"run=runs/on-{options['data']}"])
        elif program == "separate-infer":
            self.have_run(next((b for a, b in pairwise(arguments) if a == "-c"), None))
            for word in arguments:
                if word.endswith((".wav", ".flac")) or (word.endswith("/") and "=" not in word):
                    self.have_recording(word)
        code, out, err = self.call(PROGRAMS[program], *arguments, cwd=self.folder)
        assert code == 0, (out + err)[-2000:]

    def have_run(self, place: str | None) -> None:
        """Put a trained run where one is named, or where the newest is looked for, unless there is one."""
        if place is not None:
            there = (self.folder / place).exists()
        else:
            there = any((self.folder / runs).is_dir() for runs in ("runs", "multirun"))
        if not there:
            shutil.copytree(self.trained, self.folder / (place or "runs/first"))

    def have_recording(self, place: str) -> None:
        path = self.folder / place
        path = path / "song.wav" if place.endswith("/") else path
        if not path.exists():
            rng = np.random.default_rng(list(path.name.encode()))
            write(path, 0.05 * rng.standard_normal((16000, 2)))

    def with_data(self, arguments: list[str]) -> list[str]:
        """The arguments with a generated data set in place of a data.root that is a placeholder or does not exist."""
        index = next((n for n, word in enumerate(arguments) if word.startswith("data.root=")), None)
        root = "" if index is None else arguments[index].partition("=")[2]
        if index is None or (root not in PLACEHOLDERS and (self.folder / root).exists()):
            return arguments
        chosen = [word for word in arguments if re.match(r"(data|experiment)\b", word)]
        chosen = [re.sub(r"^(experiment=[^,]*),.*", r"\1", word) for word in chosen]  # of a sweep the first
        layout = next((word.removeprefix("data=") for word in chosen if word.startswith("data=")), "")
        if "--config-dir" in arguments and layout not in shipped("data"):  # of the README
            folder = self.folder / arguments[arguments.index("--config-dir") + 1]
            values = OmegaConf.to_container(OmegaConf.load(folder / "data" / f"{layout}.yaml"))
        else:
            with initialize_config_module("separate.conf", version_base="1.3"):
                config = compose("train", chosen, return_hydra_config=True)
            layout, values = config.hydra.runtime.choices["data"], OmegaConf.to_container(config.data)
        place = self.folder / "datasets" / "-".join([layout, *values["sources"]])
        if not place.exists():
            write_data(layout, place, values)
        return [*arguments[:index], f"data.root={place}", *arguments[index + 1 :]]

    def write_configs(self, place: str) -> None:
        texts = {f"{place}/{file}": text for file, text in OWN_CONFIGS.items()}
        for file, text in {**texts, "package/__init__.py": "", "package/module.py": OWN_PACKAGE}.items():
            if not (self.folder / file).exists():
                self.write_file(file, text)

    def write_file(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.suffix == ".py":
            compile(text, file, "exec")

    def execute(self, code: str) -> None:
        """Run a Python snippet; the snippets of a README share their names."""
        for place in re.findall(r"""["']([^"']+)["']""", code):
            if place.endswith(".wav"):
                self.have_recording(place)
            elif place == "RUNDIR":
                self.have_run(place)
        self.monkeypatch.chdir(self.folder)
        exec(compile(code, "snippet", "exec"), self.namespace)


@pytest.fixture
def reader(tmp_path, trained, call, monkeypatch):
    from_hydra = separate.compose.from_hydra
    monkeypatch.setattr(separate.compose, "from_hydra", lambda cfg, schema: smaller(from_hydra(cfg, schema)))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # restored if a data set puts ffmpeg there
    monkeypatch.syspath_prepend(tmp_path)  # where a README's packages are
    known = set(sys.modules)
    yield Reader(tmp_path, trained / "runs" / "tiny", call, monkeypatch)
    for module in set(sys.modules) - known:
        if (tmp_path / module.partition(".")[0]).exists() or (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES, ids=name)
def test_every_command_and_snippet_runs(readme, reader):
    failures = []
    for block in blocks(readme.read_text()):
        steps: list[tuple[Callable[[], None], str]] = []
        if file := file_of(block):
            steps = [(lambda file=file, block=block: reader.write_file(file, block.text), file)]
        elif is_python(block):
            steps = [(lambda block=block: reader.execute(block.text), block.text)]
        else:
            for command in commands(block):
                if command not in NOT_RUN:
                    steps.append((lambda command=command: reader.run(command), command))
        for step, text in steps:
            try:
                step()
            except Exception as error:
                failures.append(f"{name(readme)}:{block.line}: {text}\n  {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def test_every_command_that_is_skipped_is_in_a_readme_and_every_script_exists():
    written = {command for readme in READMES for block in blocks(readme.read_text()) for command in commands(block)}
    assert set(NOT_RUN) <= written
    named = {word for command in written for word in command.split() if re.match(r"(scripts|tests)/\w+\.py", word)}
    assert all((ROOT / script).is_file() for script in named)


def test_commands_are_found_in_fenced_and_in_indented_blocks():
    text = (
        "Words.\n\n    separate-train a=1 \\\n        b=2   # reason\n\n    config.yaml   of a run\n\n"
        "```sh\n$ make test\n# only a comment\n\nB='x # y' separate-eval\n```\n- item\n\n```yaml\nmake: test\n```\n"
        "```python\nimport os\n```\n\n       import os\n\nThis is `a.py`:\n\n```python\nimport os\n```\n"
        "```yaml\n# mine/b.yaml\na: 1\n```\n"
    )
    found = list(blocks(text))
    assert [block.line for block in found] == [3, 9, 17, 20, 23, 28, 31]
    assert [commands(block) for block in found] == [
        ["separate-train a=1 b=2"], ["make test", "B='x # y' separate-eval"], [], [], [], [], [],
    ]  # fmt: skip
    assert [is_python(block) for block in found] == [False, False, False, True, True, True, False]
    assert [file_of(block) for block in found] == [None] * 5 + ["a.py", "mine/b.yaml"]


# --------------------------------------------------------------------------------------------------------------- links


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_every_relative_link_leads_somewhere(readme):
    for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (readme.parent / place).resolve() if place else readme
        assert target.exists(), f"{name(readme)}: {link} does not exist"
        assert ROOT in target.parents, f"{name(readme)}: {link} lies outside the repository"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name(readme)}: there is no heading {link}"
        if target.suffix == ".png":
            assert target.stat().st_size < 200_000


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_a_readme_can_be_read_in_minutes(readme):
    assert len(readme.read_text().splitlines()) <= 150
    assert readme == ROOT / "README.md" or name(readme.parent) in "".join(path.read_text() for path in READMES)
