"""The recipe for an optimizer and a scheduler: a class and a YAML each; a resumed run needs trust."""

import json

import pytest


def test_an_optimizer_and_a_scheduler_of_ones_own_train_and_are_resumed_when_trusted(recipe):
    mine = recipe("conf/optimizer/README.md", "Add an optimizer and a scheduler")
    code, _, err = mine.run(0)
    assert code == 0, err
    code, _, err = mine.run(1, without="trust=[mypackage]")
    assert code == 2
    assert "mypackage.optimizers.SignSGD comes from a package that is not trusted" in err
    code, _, err = mine.run(1, "trainer.epochs=6")
    assert code == 0, err
    lines = (mine.folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    assert rates == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4, 1e-4])
