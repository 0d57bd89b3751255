"""scripts/average_checkpoints.py: the mean of weights, what is refused, and programs that load the result."""

import subprocess
from pathlib import Path

import torch

from separate import checkpoint
from separate.cli import evaluate, train
from tests.conftest import TINY_TOY
from tests.test_scripts import run


def averaged(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return run("average_checkpoints.py", *map(str, arguments))


def test_the_best_epochs_of_a_run_are_averaged_and_the_result_is_evaluated(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, "trainer.epochs=3", "trainer.keep_best=2", "run=r", cwd=tmp_path)
    assert code == 0, err
    out = tmp_path / "average.ckpt"
    done = averaged(tmp_path / "r", "--out", out)
    assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "r" / "checkpoints").glob("epoch_*.ckpt"))
    assert len(paths) == 2
    parts, found = [checkpoint.read(path)["model"] for path in paths], checkpoint.read(out)
    for name, tensor in found["model"].items():
        if tensor.is_floating_point():
            wanted = (sum(part[name].double() for part in parts) / 2).to(tensor.dtype)
            assert torch.equal(tensor, wanted)
    assert found["scores"] == {}
    assert sorted(Path(one["path"]).name for one in found["averaged"]) == [path.name for path in paths]
    code, text, err = call(evaluate, f"run='{out}'", cwd=tmp_path)
    assert code == 0, err
    assert "average.ckpt" in text


def test_integers_are_those_of_the_newest(tmp_path, trained):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "last.ckpt")
    paths = []
    for step in (9, 4):
        model = {**contents["model"], "count": torch.tensor(step)}
        paths.append(tmp_path / f"{step}.ckpt")
        checkpoint.save(paths[-1], {**contents, "model": model, "training": {**contents["training"], "step": step}})
    assert averaged(*paths, "--out", tmp_path / "out.ckpt").returncode == 0
    assert checkpoint.read(tmp_path / "out.ckpt")["model"]["count"] == 9


def test_other_configurations_and_too_few_checkpoints_are_refused(tmp_path, trained):
    path = trained / "runs" / "tiny" / "checkpoints" / "last.ckpt"
    contents = checkpoint.read(path)
    contents["config"]["batch_size"] += 1
    checkpoint.save(tmp_path / "other.ckpt", contents)
    done = averaged(path, tmp_path / "other.ckpt", "--out", tmp_path / "out.ckpt")
    assert done.returncode == 1
    assert f"other.ckpt has batch_size={contents['config']['batch_size']} and" in done.stderr
    done = averaged(path, "--out", tmp_path / "out.ckpt")
    assert "one checkpoint has no average" in done.stderr
    done = averaged(trained / "runs" / "tiny", "--out", tmp_path / "out.ckpt")
    assert "has kept 0 epochs; train with trainer.keep_best=5" in done.stderr
    assert not (tmp_path / "out.ckpt").exists()
