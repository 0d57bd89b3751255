"""Runs killed many times, also on a full disk, end with the weights of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from separate import checkpoint
from separate.config import shipped
from tests.conftest import TINY
from tests.test_deferred import equal
from tests.test_distributed import torchrun, train_on_two
from tests.test_kills import children, scalars

KILLING = Path(__file__).parent / "killing.py"
RUN = [
    *(option for option in TINY if not option.startswith("logger.")),
    "data.tracks={train: 2, valid: 1, test: 1}", "data.excerpt=0.25", "stft.n_fft=128", "stft.hop=64", "batch_size=4",
    "model.layers=2", "model.dropout=0.3", "trainer.steps_per_epoch=8", "trainer.valid_steps=1", "trainer.epochs=4",
    "trainer.save_every=1e-9", "logger.examples=0", "logger.steps=1", "resume=auto",
]  # fmt: skip
EVERYTHING = [
    "trainer.accumulate=2", "trainer.clip=auto", "ema=[0.9,0.99]", "ema_epoch=0.5", "trainer.keep_best=2",
]  # fmt: skip
SCHEDULES = {
    "sgd": "step", "rmsprop": "exponential", "adamw": "cosine", "lion": "warmup_cosine", "muon": "one_cycle",
}  # fmt: skip


def killed(folder: Path, kills: int, *arguments: str) -> int:
    """Train `whole` without a kill and `killed` with at least `kills` kills; return their number."""
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo are tested on Linux")
def test_a_run_on_two_processes_killed_three_times_equals_one_that_was_never_stopped(tmp_path):
    options = [*RUN, *EVERYTHING, "data.workers=0", "trainer.epochs=2"]
    train_on_two(*options, "hydra.run.dir=whole", cwd=tmp_path)
    chance, kills, last = random.Random(3), 0, tmp_path / "killed" / "checkpoints" / "last.ckpt"
    while True:
        process = torchrun("separate.cli.train", *options, "hydra.run.dir=killed", cwd=tmp_path)
        if kills < 3:
            wait_for_checkpoints(process, last, chance.randrange(1, 4))
            time.sleep(chance.uniform(0, 0.05))
            for one in (process.pid, *children(process.pid)):
                os.kill(one, signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            process.stdout.close()
            continue
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
        break
    agree(tmp_path)


def wait_for_checkpoints(process: "subprocess.Popen[str]", last: Path, count: int) -> None:
    """Wait until the training has written that many checkpoints."""
    seen, patience = None, time.monotonic() + 120
    while count >= 0:
        now = last.stat().st_mtime_ns if last.exists() else 0
        if now != seen:
            seen, count = now, count - 1
        assert process.poll() is None and time.monotonic() < patience, "the training does not advance"
        time.sleep(0.001)
