"""resume=PATH: another run goes on in a new folder, and stays as it is."""

import json

import pytest
import torch

from separate import checkpoint
from separate.cli import train
from tests.conftest import TINY_TOY
from tests.test_pipeline import refusal

EPOCHS = [*TINY_TOY, "trainer.precision=fp32"]


@pytest.fixture
def two_epochs(tmp_path, call):
    """A run of two epochs, and the one of four epochs that it is the first half of."""
    for name, epochs in (("half", 2), ("whole", 4)):
        code, _, err = call(train, *EPOCHS, f"trainer.epochs={epochs}", f"run={name}", cwd=tmp_path)
        assert code == 0, err
    return tmp_path


@pytest.mark.parametrize("path", ["half", "half/checkpoints/last.ckpt"])
def test_another_run_goes_on_bit_for_bit_in_a_new_folder(two_epochs, call, path):
    before = {file: file.read_bytes() for file in (two_epochs / "half").rglob("*") if file.is_file()}
    code, out, err = call(train, f"resume={path}", "run=new", "trainer.epochs=4", cwd=two_epochs)
    assert code == 0, err
    assert "run: " + str(two_epochs / "new") in out or "run: new" in out
    for name in ("last", "best"):
        new, whole = (checkpoint.read(two_epochs / run / "checkpoints" / f"{name}.ckpt") for run in ("new", "whole"))
        assert all(torch.equal(value, new["model"][key]) for key, value in whole["model"].items())
        assert new["training"]["best"] == whole["training"]["best"]
    epochs = [json.loads(line)["epoch"] for line in (two_epochs / "new" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
    assert {file: file.read_bytes() for file in (two_epochs / "half").rglob("*") if file.is_file()} == before
    assert checkpoint.read(two_epochs / "new" / "checkpoints" / "last.ckpt")["config"]["run"].endswith("new")


def test_a_best_checkpoint_of_a_later_epoch_is_not_taken_over(two_epochs, call):
    best = two_epochs / "half" / "checkpoints" / "best.ckpt"
    contents = checkpoint.read(best)
    contents["scores"]["valid/loss"] -= 1.0  # of an epoch after last.ckpt
    checkpoint.save(best, contents)
    code, _, err = call(train, "resume=half", "run=new", "trainer.epochs=3", cwd=two_epochs)
    assert code == 0, err
    assert checkpoint.read(two_epochs / "new" / "checkpoints" / "best.ckpt")["training"]["epoch"] == 3


def test_a_path_without_a_run_and_a_folder_with_one_are_refused(two_epochs, call):
    said = refusal(call(train, "resume=nothing", "run=new", cwd=two_epochs), 2)
    assert "resume=nothing is not true, false or auto, and nothing does not exist; name a run's folder" in said
    said = refusal(call(train, "resume=half", "run=whole", cwd=two_epochs), 2)
    assert "whole holds a run already" in said
    code, out, err = call(train, "resume=half", "run=half", "trainer.epochs=3", cwd=two_epochs)  # as resume=true
    assert code == 0, err
    assert "after epoch 2" in out
