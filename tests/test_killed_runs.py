"""Runs that are killed many times, also on a full disk, end with the weights of a run that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from separate import checkpoint
from separate.config import shipped
from tests.conftest import TINY
from tests.test_deferred import equal
from tests.test_kills import scalars

KILLING = Path(__file__).parent / "killing.py"
RUN = [
    *(option for option in TINY if not option.startswith("logger.")),
    "data.tracks={train: 2, valid: 1, test: 1}", "data.excerpt=0.25", "stft.n_fft=128", "stft.hop=64", "batch_size=4",
    "model.layers=2", "model.dropout=0.3", "trainer.steps_per_epoch=8", "trainer.valid_steps=1", "trainer.epochs=4",
    "trainer.checkpoint_minutes=1e-9", "logger.examples=0", "logger.steps=1", "resume=auto",
]  # fmt: skip
EVERYTHING = ["trainer.accumulate=2", "trainer.clip=auto"]
SCHEDULES = {
    "sgd": "step", "rmsprop": "exponential", "adamw": "cosine", "lion": "warmup_cosine", "muon": "one_cycle",
}  # fmt: skip


def killed(folder: Path, kills: int, *arguments: str) -> int:
    """Train without a stop and killed at least that many times; return how often it was."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(KILLING), "5", str(kills), *RUN, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


def agree(folder: Path) -> None:
    """The runs `whole` and `killed` have the same weights, state, metrics and curves."""
    for name in ("last", "best"):
        whole, other = (checkpoint.read(folder / run / "checkpoints" / f"{name}.ckpt") for run in ("whole", "killed"))
        for contents in (whole, other):
            del contents["training"]["seconds"]
        assert equal(other["model"], whole["model"])
        assert equal(other["training"], whole["training"])
    whole, other = (
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    )
    timed = {"minutes", "train/steps_per_second", "train/examples_per_second", "train/waiting", "train/memory"}
    assert [{k: v for k, v in line.items() if k not in timed} for line in other] == [
        {k: v for k, v in line.items() if k not in timed} for line in whole
    ]
    for tag, steps in scalars(folder / "killed").items():
        assert steps == sorted(set(steps)), (tag, steps)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twenty_times_equals_one_that_was_never_stopped(tmp_path, workers):
    assert killed(tmp_path, 20, *EVERYTHING, f"data.workers={workers}") >= 20
    agree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [name for name in shipped("optimizer") if name != "adam"])
def test_a_killed_run_equals_one_that_was_never_stopped_with_every_optimizer(tmp_path, optimizer):
    short = ["trainer.steps_per_epoch=4", "trainer.epochs=2", "data.workers=0"]
    killed(
        tmp_path, 3, *EVERYTHING, *short, f"optimizer={optimizer}", f"scheduler={SCHEDULES.get(optimizer, 'plateau')}"
    )
    agree(tmp_path)
