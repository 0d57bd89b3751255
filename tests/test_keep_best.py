"""trainer.keep_best, also after a kill, selection without a value, and `trainer.checkpoint_minutes` of older runs."""

import math
import shutil
from pathlib import Path

import pytest

from separate import checkpoint
from separate.cli import train
from separate.training.averages import RAW
from separate.training.resume import resumed_config
from separate.training.selection import winner
from separate.training.trainer import end_epoch
from tests.conftest import TINY_TOY
from tests.test_trainer import start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("monitor", "sign"), [("valid/loss", 1), ("valid/si_sdr", -1)])
def test_the_best_epochs_are_kept_and_a_resumed_run_knows_them(tmp_path, monitor, sign):
    state, training = start(tmp_path, keep_best=2, monitor=monitor)
    for value in (3.0, 5.0, float("nan"), 1.0):
        end_epoch(state, training, {monitor: sign * value})
    assert state.kept == [(sign * 1.0, 4), (sign * 3.0, 1)]
    assert names(tmp_path) == ["best.ckpt", "epoch_0001.ckpt", "epoch_0004.ckpt", "last.ckpt"]
    best = checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")
    assert best["scores"] == checkpoint.read(tmp_path / "checkpoints" / "epoch_0004.ckpt")["scores"]
    resumed, training = start(tmp_path, keep_best=2, monitor=monitor)
    resumed.restore(checkpoint.read(tmp_path / "checkpoints" / "last.ckpt"))
    end_epoch(resumed, training, {monitor: sign * 2.0})
    assert names(tmp_path) == ["best.ckpt", "epoch_0004.ckpt", "epoch_0005.ckpt", "last.ckpt"]


def test_a_run_killed_between_writing_and_removing_goes_on_with_the_files_it_lists(tmp_path):
    """Any prefix of the writes and removals of an epoch may have happened."""
    values = (3.0, 2.0, 1.0)
    state, training = start(tmp_path / "whole", keep_best=2)
    stages = []
    for number, value in enumerate(values):
        end_epoch(state, training, {"valid/loss": value})
        stages.append(shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / f"after_{number}"))
    before, after = stages[1], stages[2]
    order = ["epoch_0003.ckpt", "best.ckpt", "last.ckpt"]
    for written in range(4):
        folder = tmp_path / f"killed_{written}"
        shutil.copytree(before, folder / "checkpoints")
        for name in order[:written]:
            shutil.copy(after / name, folder / "checkpoints" / name)
        state, training = start(folder, keep_best=2)
        state.restore(checkpoint.read(folder / "checkpoints" / "last.ckpt"))
        assert {f"epoch_{epoch:04d}.ckpt" for _, epoch in state.kept} <= set(names(folder))
        for value in (*values, 4.0)[state.epoch :]:
            end_epoch(state, training, {"valid/loss": value})
        assert names(folder) == ["best.ckpt", "epoch_0002.ckpt", "epoch_0003.ckpt", "last.ckpt"]
        assert checkpoint.read(folder / "checkpoints" / "best.ckpt")["scores"]["valid/loss"] == 1.0


def test_a_run_older_than_save_every_resumes(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, "run=r", cwd=tmp_path)
    assert code == 0, err
    path = tmp_path / "r" / "checkpoints" / "last.ckpt"
    contents = checkpoint.read(path)
    trainer = contents["config"]["trainer"]
    trainer["checkpoint_minutes"] = 3.0
    for key in ("save_every", "keep_best", "valid_full"):
        del trainer[key]
    for key in ("ema", "ema_epoch"):
        del contents["config"][key]
    for key in ("averages", "kept"):
        del contents["training"][key]
    del contents["weights"]
    checkpoint.save(path, contents)
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    assert "save_every: 3.0" in (tmp_path / "r" / "config.yaml").read_text()
    saved = {"trainer": {"checkpoint_minutes": 3.0}}
    found = resumed_config(saved, {"trainer": {"save_every": 5.0}}, ["trainer.save_every=5"])
    assert found == {"trainer": {"save_every": 5.0}}


def test_an_epoch_without_an_applied_step_is_not_the_best():
    weights, value = winner({"train/skipped": 2.0}, "train/loss", [RAW, "ema0.9"], upwards=False)
    assert weights == RAW and math.isnan(value)
