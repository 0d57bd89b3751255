"""Training on several processes of torchrun, with gloo on this machine: the same training as on one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.data.loader import FixedBatches, Share, TrainingSteps
from separate.process import cores, worker_count
from separate.training.distributed import ALONE
from tests.conftest import TINY_TOY
from tests.rank_steps import results
from tests.test_kills import children
from tests.test_pipeline import wait_for
from tests.test_trainer import start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo are tested on Linux")
OPTIONS = [*TINY_TOY, "batch_size=5", "trainer.valid_steps=null", "trainer.precision=fp32", "trainer.patience=null"]
ENDLESS = [*OPTIONS, "trainer.epochs=1000", "hydra.run.dir=r", "resume=auto"]
ENDED = "another process of this training ended"


def torchrun(*arguments: str, cwd: Path, restarts: int = 0) -> "subprocess.Popen[str]":
    """Start two processes of `python -m ARGUMENTS`; their output and errors are in one stream."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", f"--max-restarts={restarts}", "-m", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def train_on_two(*arguments: str, cwd: Path) -> str:
    process = torchrun("separate.cli.train", *arguments, cwd=cwd)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last(run: Path) -> dict:
    return checkpoint.read(run / "checkpoints" / "last.ckpt")


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    """The processes of a training, which a checkpoint of it precedes."""
    return [
        child for child in children(process.pid) if "separate.cli.train" in Path(f"/proc/{child}/cmdline").read_text()
    ]


# -------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_shares_of_all_ranks_are_the_batch_in_order(size, tmp_path):
    _, training = start(tmp_path)
    whole = TrainingSteps(training.train, 5, 0)[7]
    parts = [TrainingSteps(training.train, 5, 0, share=Share(rank, size))[7] for rank in range(size)]
    torch.testing.assert_close(torch.cat([part.sources for part in parts]), whole.sources, rtol=0, atol=0)
    assert [track for part in parts for track in part.tracks] == whole.tracks
    assert {len(part.tracks) for part in parts} <= {5 // size, -(-5 // size)}
    assert {part.total for part in parts} == {5}


def test_a_share_with_neighbours_starts_with_the_example_before_it():
    numbers = range(10, 15)
    shares = [Share(rank, 2, neighbours=True) for rank in (0, 1)]
    assert [share.of(numbers) for share in shares] == [[14, 10, 11], [11, 12, 13, 14]]
    assert {share.context(numbers) for share in shares} == {1}
    assert [share.of(range(3, 4)) for share in shares] == [[], [3]]
    assert Share(0, 1, neighbours=True).of(numbers) == list(numbers)


def test_a_validation_batch_with_fewer_examples_than_ranks_leaves_some_without(tmp_path):
    _, training = start(tmp_path)
    batches = [FixedBatches(training.valid, 5, Share(rank, 2)) for rank in (0, 1)]  # 16 examples
    assert len(batches[0]) == 4
    found = [batch[3] for batch in batches]
    assert found[0] is None
    assert found[1] is not None and len(found[1].tracks) == 1


def test_the_processes_of_a_machine_share_its_cores_among_their_workers(monkeypatch):
    alone = worker_count("auto", gpu=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert worker_count("auto", gpu=True) == min(max(1, cores() // 2) - 1, 8) <= alone
    assert worker_count(3) == 3  # for each process


# --------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.slow
def test_every_model_and_loss_takes_the_same_steps_on_two_processes(tmp_path):
    """Also batch normalisation, centres of clusters and MixIT's pairs; and a NaN on one rank skips the step on all."""
    process = torchrun("tests.rank_steps", str(tmp_path), cwd=tmp_path)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    ranks = [torch.load(tmp_path / f"rank_{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert [rank["skips"] for rank in ranks] == [True, True]
    dump = torch.load(tmp_path / "nonfinite" / "step_0.pt", weights_only=False)
    assert len(dump["batch"]["tracks"]) == 4  # the batch of both
    alone = results(ALONE, tmp_path)
    for case, values in {**alone["steps"], "measured": alone["measured"]}.items():
        first, second = ({**rank["steps"], "measured": rank["measured"]}[case] for rank in ranks)
        for one, ours, theirs in zip(values, first, second, strict=True):
            assert torch.equal(ours, theirs), case
            torch.testing.assert_close(ours, one, rtol=1e-3, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on_from_two(tmp_path, call):
    """With an odd batch in parts, in the folder of the time."""
    options = [*OPTIONS, "trainer.steps_per_epoch=3", "trainer.accumulate=2", "model.normalisation=none"]
    code, _, err = call(train, *options, "trainer.epochs=3", "run=one", cwd=tmp_path)
    assert code == 0, err
    out = train_on_two(*options, "trainer.epochs=2", cwd=tmp_path)
    (run,) = (tmp_path / "runs").glob("*/*")
    assert re.findall("^run: (.*)$", out, re.MULTILINE) == [str(run)]
    assert len(re.findall("epoch 2  train loss", out)) == 1
    assert "Warning" not in out
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert {path.relative_to(run) for path in run.rglob("*")} == names
    assert len((run / "train.log").read_text().splitlines()) == len(set((run / "train.log").read_text().splitlines()))
    timed = {
        "minutes",
        "train/memory",
        *(f"train/{name}" for name in ("steps_per_second", "examples_per_second", "waiting")),
    }
    for two, one in zip(metrics(run), metrics(tmp_path / "one"), strict=False):
        assert two.keys() == one.keys()
        for name in two.keys() - timed:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), name
    code, _, err = call(train, f"run={run}", "resume=true", "trainer.epochs=3", cwd=tmp_path)
    assert code == 0, err
    assert last(run)["training"]["step"] == 9
    for name, weight in last(tmp_path / "one")["model"].items():
        torch.testing.assert_close(last(run)["model"][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_on_two_processes_resumes_bit_for_bit(tmp_path):
    """Each rank goes on with its own random numbers for dropout."""
    options = [*OPTIONS, "model.layers=2", "model.dropout=0.3", "scheduler=none"]
    train_on_two(*options, "trainer.epochs=2", "run=whole", cwd=tmp_path)
    train_on_two(*options, "trainer.epochs=1", "run=parts", cwd=tmp_path)
    train_on_two("run=parts", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert all(torch.equal(weight, parts["model"][name]) for name, weight in whole["model"].items())
    (theirs,), (ours,) = whole["training"]["others"], parts["training"]["others"]
    assert torch.equal(theirs["random"], ours["random"])
    assert not torch.equal(theirs["random"], whole["training"]["random"])


# ------------------------------------------------------------------------------------------------------------- endings


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_torchrun_starts_them_again(tmp_path):
    process = torchrun("separate.cli.train", *ENDLESS, cwd=tmp_path, restarts=1)
    wait_for(tmp_path / "r" / "checkpoints" / "last.ckpt", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    log, deadline = tmp_path / "r" / "train.log", time.monotonic() + 100
    while "going on in" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert re.search(r"going on in .* after epoch \d+, step [1-9]", log.read_text())
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    killed = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    assert len(re.findall(f"^separate-train: {ENDED}", out, re.MULTILINE)) == 2
    assert "unexpected" not in out


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, call):
    process = torchrun("separate.cli.train", *ENDLESS, cwd=tmp_path)
    wait_for(tmp_path / "r" / "checkpoints" / "last.ckpt", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    (step,) = re.findall(r"^separate-train: stopped by SIGTERM in epoch \d+ after step (\d+)", out, re.MULTILINE)
    assert ENDED not in out
    assert out.count("saved checkpoints/last.ckpt") == 1
    contents = last(tmp_path / "r")
    assert contents["training"]["step"] == int(step)
    assert len(contents["training"]["others"]) == 1
    code, out, err = call(train, *ENDLESS, "trainer.epochs=1", cwd=tmp_path)  # on one process
    assert code == 0, err
    assert "the run had ended already" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["batch_size=1"], "batch_size=1 leaves some of 2 processes without an example"),
        (["optimizer.lr=1e-3,1e-2", "-m"], "torchrun starts one training, and this is a sweep"),
        (["device=mps"], "device=mps is not on this machine"),
    ],
    ids=["too few examples", "sweep", "device"],
)
def test_a_refused_command_is_explained_once_and_leaves_nothing(arguments, sentence, tmp_path):
    process = torchrun("separate.cli.train", *OPTIONS, *arguments, cwd=tmp_path)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert out.count(sentence) == 1, out
    assert ENDED not in out and "unexpected" not in out


SLURM = {  # commands of Slurm and torchrun on one machine
    "scontrol": '[ "$1" = show ] && echo localhost || echo "$@" >> requeued',
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}


@pytest.mark.slow
def test_the_slurm_job_saves_its_state_and_requeues_itself(tmp_path):
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **job, "SLURM_JOB_ID": str(os.getpid()), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = Path(__file__).parents[1] / "scripts" / "slurm.sh"
    process = subprocess.Popen(
        ["bash", str(script), *[option for option in ENDLESS if option != "resume=auto"]],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "r" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    (step,) = re.findall(r"stopped by SIGTERM in epoch \d+ after step (\d+)", out)
    assert last(tmp_path / "r")["training"]["step"] == int(step)
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
