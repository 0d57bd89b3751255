"""The recipe for a loss: a class and a YAML of one's own train; evaluation does not need them."""

import json

import pytest
import torch

from separate import checkpoint, targets
from separate.cli import evaluate
from separate.data.batch import Batch
from separate.separator import Separation

README = ("separate/losses/README.md", "Add a loss")


def test_a_loss_of_ones_own_trains_and_is_not_needed_for_evaluation(recipe):
    mine = recipe(*README)
    code, _, err = mine.run(0)
    assert code == 0, err
    saved = checkpoint.read(mine.folder / "runs" / "mine" / "checkpoints" / "last.ckpt")["config"]
    assert (saved["loss"]["_target_"], saved["loss"]["epsilon"]) == ("mypackage.losses.Charbonnier", 1e-3)
    assert saved["target"]["_target_"] == "separate.targets.waveform"

    (mine.folder / "mypackage").rename(mine.folder / "elsewhere")
    code, _, err = mine.run(1)
    assert code == 0, err
    (mine.folder / "elsewhere").rename(mine.folder / "mypackage")

    code, _, err = mine.run(2, without="trust=[mypackage]")
    assert code == 2
    assert "mypackage.losses.Charbonnier comes from a package that is not trusted" in err
    code, _, err = mine.run(2, "trainer.epochs=2")
    assert code == 0, err


def test_a_loss_of_ones_own_is_a_term_of_a_sum(recipe):
    mine = recipe(*README)
    code, _, err = mine.run(3)
    assert code == 0, err
    line = json.loads((mine.folder / "runs" / "sum" / "metrics.jsonl").read_text())
    assert line["train/loss"] == pytest.approx(line["train/tpsa"] + 10 * line["train/mine"], rel=1e-5)


def test_the_loss_of_the_recipe_is_its_formula_and_pairs_interchangeable_sources(recipe):
    recipe(*README)
    from mypackage.losses import Charbonnier

    sources = torch.randn(2, 2, 1, 100)
    batch = Batch(sources.sum(1), sources)
    swapped = Separation(batch, {"waveforms": (sources + 0.1).flip(1)})
    value, _ = Charbonnier(targets.waveform, 0.01, interchangeable=True)(swapped, batch)
    assert value.item() == pytest.approx((0.1**2 + 0.01**2) ** 0.5, rel=1e-5)


def test_a_checkpoint_cannot_build_a_term_from_a_package_that_is_not_trusted(trained, call, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "last.ckpt")
    terms = {"tpsa": 1.0, "evil": {"_target_": "subprocess.Popen", "args": "true"}}
    contents["config"].update(rescale="auto", loss={"_target_": "separate.losses.WeightedSum", "terms": terms})
    checkpoint.save(tmp_path / "evil.ckpt", contents)
    code, _, err = call(evaluate, "run=evil.ckpt", "device=cpu", cwd=tmp_path)
    assert code == 2
    assert "loss.terms.evil._target_=subprocess.Popen comes from a package that is not trusted" in err
    contents["config"]["loss"]["terms"] = {"l1": {"target": {"_target_": "subprocess.Popen", "args": "true"}}}
    checkpoint.save(tmp_path / "evil.ckpt", contents)
    code, _, err = call(evaluate, "run=evil.ckpt", "device=cpu", cwd=tmp_path)
    assert code == 2
    assert "loss.terms.l1.target._target_=subprocess.Popen comes from a package that is not trusted" in err
