"""Non-finite steps: their dumps and their replay."""

import re

import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.data.loader import TrainingSteps
from separate.training.deferred import Pending
from separate.training.nonfinite import MOST_DUMPS, read_dump, report
from separate.training.setup import prepare
from separate.training.state import random_states
from separate.training.step import backward, train_step
from separate.training.trainer import fit
from tests.conftest import TINY_TOY
from tests.test_pipeline import refusal
from tests.test_trainer import CONFIG, first_batch, start

CPU = torch.device("cpu")


@pytest.fixture
def dump(tmp_path):
    """The dump of the third step of a run with dropout.  Its loss is finite, so that a replay can be compared."""
    config = {**CONFIG, "model": {**CONFIG["model"], "dropout": 0.5}}
    config["trainer"] = {**CONFIG["trainer"], "precision": "bf16"}
    state, training = prepare(config, tmp_path / "run")
    steps = TrainingSteps(training.train, 4, 0)
    for number in range(2):
        train_step(state, training, steps[number])
    random, drawn = random_states(CPU), steps[2]
    metrics = backward(state, training, drawn)
    report(state, training, Pending(2, drawn, metrics, random), metrics.read())
    return tmp_path / "run" / "nonfinite" / "step_2.pt"


def replayed(call, path, *arguments):
    """The numbers that a replay prints: {name: (now, in the run)}."""
    code, out, err = call(train, "debug=replay", f"dump={path}", *arguments, cwd=path.parent)
    assert code == 0, err
    assert "step 2 of" in out
    return {name: (float(now), float(then)) for name, now, then in re.findall(r"  (\S+): (\S+), in the run (\S+)", out)}


def test_a_replay_has_the_weights_the_batch_and_the_random_numbers_of_the_step(dump, call):
    values = replayed(call, dump)
    assert set(values) == {"loss", "gradient_norm"}
    assert all(now == then for now, then in values.values())
    assert sorted(path.name for path in dump.parent.iterdir()) == ["step_2.pt"]  # no run's folder
    contents = read_dump(dump)
    contents["training"]["random"] = torch.Generator().manual_seed(5).get_state()
    checkpoint.save(dump, contents)
    now, then = replayed(call, dump)["loss"]
    assert now != then  # dropout draws other numbers


def test_a_replay_in_another_precision_shows_whether_the_precision_is_the_cause(dump, call):
    now, then = replayed(call, dump, "trainer.precision=fp32")["loss"]
    assert now != then
    assert now == pytest.approx(then, rel=0.05)


def test_a_replay_names_the_gradients_that_are_not_finite(tmp_path, call):
    state, training = start(tmp_path / "run")
    batch = first_batch(training)
    batch.sources[1, 0, 0, 100] = torch.nan
    train_step(state, training, batch)
    code, out, err = call(train, "debug=replay", f"dump={tmp_path}/run/nonfinite/step_0.pt", cwd=tmp_path)
    assert code == 0, err
    assert "loss: nan, in the run nan" in out
    assert re.search(r"gradients that are not finite: .*network.head.linear.weight", out), out


def test_a_run_keeps_the_newest_dumps_and_counts_the_steps(tmp_path, monkeypatch):
    whole = TrainingSteps.__getitem__

    def spoiled(self, number):
        drawn = whole(self, number)
        if number % 3:
            drawn.sources[1, 0, 0, 100] = torch.nan
        return drawn

    monkeypatch.setattr(TrainingSteps, "__getitem__", spoiled)
    state, training = start(tmp_path, epochs=1, steps_per_epoch=12)
    fit(state, training)
    kept = {path.name for path in (tmp_path / "nonfinite").iterdir()}
    assert kept == {f"step_{number}.pt" for number in (4, 5, 7, 8, 10, 11)[-MOST_DUMPS:]}
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["scores"]["train/skipped"] == 8


def test_a_checkpoint_is_no_dump_and_a_replay_needs_a_file(trained, call, tmp_path):
    last = trained / "runs" / "tiny" / "checkpoints" / "last.ckpt"
    said = refusal(call(train, "debug=replay", f"dump={last}", cwd=tmp_path), 2)
    assert "is a checkpoint and not the dump of a step; name a file of RUN/nonfinite" in said
    said = refusal(call(train, "debug=replay", *TINY_TOY[1:], cwd=tmp_path), 2)
    assert "there is no step to run again; add dump=RUN/nonfinite/step_N.pt" in said
    assert list(tmp_path.iterdir()) == []
