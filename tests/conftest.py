"""Small data sets on disk in every layout, and one trained run for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from separate.config import shipped
from tests.pretend import CUDA, Pretending, pretended_cuda

RATE = 8000
TINY = ["model.units=16", "model.layers=1", "logger.tensorboard=false", "device=cpu"]
TINY_TOY = ["debug=fast", "data.tracks={train: 4, valid: 2, test: 2}", *TINY]


def target(layout: str) -> str:
    """The `_target_` of a layout in conf/data."""
    found: str = shipped("data")[layout]["_target_"]
    return found


def devices() -> list[str]:
    """The CPU, a pretended GPU, and the GPU of this machine if it has one."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", "pretended", *(name for name, found in there.items() if found)]


@pytest.fixture(params=devices())
def device_and_mode(request: pytest.FixtureRequest) -> Iterator[tuple[torch.device, Pretending | None]]:
    if request.param == "pretended":
        with pretended_cuda() as mode:
            yield CUDA, mode
    else:
        with pytest.MonkeyPatch.context() as patch:  # TF32 has 10 bits of precision, too few to compare with the CPU
            patch.setattr(torch.backends.cudnn, "allow_tf32", False)
            yield torch.device(request.param), None


@pytest.fixture
def device(device_and_mode: tuple[torch.device, Pretending | None]) -> torch.device:
    """Each device in turn: a test with this fixture runs on all of them."""
    return device_and_mode[0]


@pytest.fixture
def pretended() -> Iterator[Pretending]:
    """A pretended CUDA device, and the places where the host has waited for it."""
    with pretended_cuda() as mode:
        yield mode


@pytest.fixture
def waits(device_and_mode: tuple[torch.device, Pretending | None]) -> Callable[[], AbstractContextManager[list[str]]]:
    """waits() -> a context with the places where the host waits for the device; on a real GPU waiting is an error."""

    @contextmanager
    def watching() -> Iterator[list[str]]:
        place, mode = device_and_mode
        found: list[str] = []
        if mode is not None:
            mode.waits.clear()
        if place.type == "cuda" and mode is None:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield found
        finally:
            found += mode.waits if mode is not None else []
            if place.type == "cuda" and mode is None:
                torch.cuda.set_sync_debug_mode("default")

    return watching


def tone(frequency: float, seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A sine (T, C) float64, every channel a little quieter than the one before."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.1 * np.sin(2 * np.pi * frequency * time)[:, None] * 0.9 ** np.arange(channels)


def write(path: Path, audio: np.ndarray, rate: int = RATE, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), audio, rate, **options)
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, also for the programs that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "separate"


@pytest.fixture
def stems(tmp_path: Path) -> Path:
    """Ten stereo tracks of two stems at 8 kHz, no valid split, one stem as FLAC."""
    for split, count in (("train", 10), ("test", 2)):
        for index in range(count):
            folder = tmp_path / "stems" / split / f"song {index:02d}"
            write(folder / "low.wav", tone(200 + 10 * index, channels=2))
            write(folder / f"high.{'flac' if index == 1 else 'wav'}", tone(1500 + 50 * index, channels=2))
    return tmp_path / "stems"


def _wsj0mix(root: Path, speakers: int) -> Path:
    for split in ("tr", "cv", "tt"):
        for index in range(4):
            voices = {f"s{n}": tone(650 * n - 400 + 50 * n * index) for n in range(1, speakers + 1)}
            for name, audio in {**voices, "mix": sum(voices.values())}.items():
                write(root / split / name / f"{index}.wav", audio, subtype="FLOAT")
    return root


@pytest.fixture
def wsj0mix(tmp_path: Path) -> Path:
    return _wsj0mix(tmp_path / "wsj0mix", 2)


@pytest.fixture
def wsj0mix3(tmp_path: Path) -> Path:
    return _wsj0mix(tmp_path / "wsj0mix3", 3)


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    for split in ("tr", "cv", "tt"):
        for number, speaker in enumerate(("ann", "bob", "cid")):
            for clip in range(3):
                audio = tone(200 * (number + 1) + 20 * clip, seconds=0.4)
                write(tmp_path / "pools" / split / speaker / f"{clip}.wav", audio)
    return tmp_path / "pools"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program's main() in this process: call(train, "batch_size=0", cwd=...) -> (exit code, stdout, stderr)."""

    def run(program, *arguments: str, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", [f"separate-{program.__name__.rpartition('.')[2]}", *arguments])
        code = 0
        try:
            program.main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        finally:
            torch.set_flush_denormal(False)  # Hypothesis needs denormals, and a program turns them off
        out, err = capsys.readouterr()
        return code, out, err

    return run


Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program() -> Program:
    """Run an installed program as a user does: program("separate-train", "debug=fast", cwd=...)."""

    def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        path = Path(sys.executable).parent / name
        return subprocess.run([str(path), *arguments], cwd=cwd, capture_output=True, text=True, timeout=200)

    return run


@pytest.fixture(scope="session")
def trained(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `separate-train` has left one tiny run, at runs/tiny."""
    folder = tmp_path_factory.mktemp("trained")
    done = program("separate-train", *TINY_TOY, "run=runs/tiny", "logger.tensorboard=true", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {folder / 'runs' / 'tiny'}"
    return folder


@pytest.fixture
def recipe(tmp_path, call, monkeypatch):
    """recipe("separate/losses/README.md", "Add a loss"): that section of a README, followed in a temporary folder."""
    from tests.recipes import Recipe

    monkeypatch.syspath_prepend(tmp_path)
    return Recipe(tmp_path, call).follow
