"""Averages of the weights: their formula, skipped steps, the checkpoint of the best weights, resumption."""

from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.config import TrainerConfig
from separate.training.averages import Averages
from separate.training.interruption import interruptible
from separate.training.setup import prepare
from separate.training.state import State, Training
from separate.training.step import flush, train_step
from separate.training.trainer import end_epoch, fit
from separate.training.validation import validate
from tests.conftest import TINY_TOY
from tests.test_deferred import equal
from tests.test_trainer import CONFIG, first_batch


def start(folder: Path, averaged: dict, **options: object) -> tuple[State, Training]:
    trainer = asdict(replace(TrainerConfig(**CONFIG["trainer"]), **options))
    return prepare({**deepcopy(CONFIG), **averaged, "trainer": trainer}, folder)


def floats(state: State) -> dict[str, torch.Tensor]:
    return {k: v.double().clone() for k, v in state.separator.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize("lags", [False, True])
def test_an_average_is_the_bias_corrected_sum_over_the_applied_steps(tmp_path, lags):
    state, training = start(tmp_path, {"ema": [0.5, 0.9]})
    training.lags = lags
    seen = []
    for number in range(6):
        drawn = first_batch(training)
        if number in (0, 3):
            drawn.sources[1, 0, 0, 100] = torch.nan
        train_step(state, training, drawn)
        flush(state, training)
        if number not in (0, 3):
            seen.append(floats(state))
    for decay in (0.5, 0.9):
        ages = [decay ** (len(seen) - 1 - index) for index in range(len(seen))]
        average = state.averages.all[f"ema{decay}"]
        assert average.count == 4
        for name, found in average.tensors.items():
            wanted = sum(age * one[name] for age, one in zip(ages, seen, strict=True)) / sum(ages)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


def test_steps_read_later_give_the_same_averages(tmp_path):
    """Also of running statistics, although the forward pass of the next step changes them first."""
    found = []
    for lags in (False, True):
        state, training = start(tmp_path, {"ema": 0.5})
        training.lags = lags
        good, bad = first_batch(training), first_batch(training)
        bad.sources[0, 0, 0, 7] = torch.inf
        for drawn in (bad, good, bad, good, good):
            train_step(state, training, drawn)
        flush(state, training)
        found.append(state.averages.state_dict())
    assert found[0]["ema0.5"]["count"] == 3
    assert equal(*found)


def test_an_average_over_epochs_gets_each_epoch_once(tmp_path):
    state, _ = start(tmp_path, {"ema_epoch": 0.9})
    state.averages.after_epoch(0)
    state.averages.after_epoch(0)  # an interrupted validation is repeated
    assert state.averages.all["ema_epoch0.9"].count == 1
    assert state.averages.sets == ["raw", "ema_epoch0.9"]


@pytest.mark.parametrize("better", ["raw", "ema0.9"])
def test_the_best_checkpoint_holds_the_weights_that_won(tmp_path, better):
    state, training = start(tmp_path, {"ema": 0.9}, epochs=1)
    for _ in range(5):
        train_step(state, training, first_batch(training))
    with interruptible() as interruption:
        means = validate(state, training, interruption)
    assert means["valid/loss"] != means["valid_ema0.9/loss"]
    loser = "valid/loss" if better != "raw" else "valid_ema0.9/loss"
    raw = floats(state)
    end_epoch(state, training, {**means, loser: 1e9})
    contents = checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")
    assert contents["weights"] == better
    loaded, again = start(tmp_path / "again", {})
    loaded.separator.load_state_dict(contents["model"])
    with interruptible() as interruption:
        found = validate(loaded, again, interruption)
    name = "valid/loss" if better == "raw" else "valid_ema0.9/loss"
    assert found["valid/loss"] == pytest.approx(means[name], rel=1e-6)
    assert state.best == means[name]
    last = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")
    assert last["weights"] == "raw"
    assert all(torch.equal(last["model"][key].double(), value) for key, value in raw.items())


def test_swapping_exchanges_values_and_restores_them_also_of_a_shared_tensor():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    averages = Averages(module, [0.5])
    averages.after_step()
    before = deepcopy(module.state_dict())
    with torch.no_grad():
        module["a"].weight.add_(1)
    changed, average = deepcopy(module.state_dict()), deepcopy(averages.state_dict())
    place = module["a"].weight.data_ptr()
    with averages.swapped("ema0.5"):
        assert equal(dict(module.state_dict()), dict(before))
    assert equal(dict(module.state_dict()), dict(changed))
    assert equal(averages.state_dict(), average)
    assert module["a"].weight.data_ptr() == place


def test_a_resumed_run_with_averages_goes_on_bit_for_bit(tmp_path):
    averaged = {"ema": [0.9, 0.5], "ema_epoch": 0.5}
    whole, training = start(tmp_path / "whole", averaged, keep_best=2)
    fit(whole, training)
    part, training = start(tmp_path / "part", averaged, epochs=2, keep_best=2)
    fit(part, training)
    resumed, training = start(tmp_path / "part", averaged, keep_best=2)
    resumed.restore(checkpoint.read(tmp_path / "part" / "checkpoints" / "last.ckpt"))
    fit(resumed, training)
    ours, theirs = whole.capture(), resumed.capture()
    del ours["training"]["seconds"], theirs["training"]["seconds"]
    assert equal(ours, theirs)
    assert ours["training"]["averages"]["ema_epoch0.5"]["count"] == 3


def test_averages_are_options_of_the_program_and_reach_the_metrics(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, "ema=[0.5,0.9]", "ema_epoch=0.5", "run=r", cwd=tmp_path)
    assert code == 0, err
    logged = (tmp_path / "r" / "metrics.jsonl").read_text()
    assert all(f'"valid{name}/si_sdr"' in logged for name in ("", "_ema0.5", "_ema0.9", "_ema_epoch0.5"))
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", "ema=0.7", cwd=tmp_path)
    assert code == 2
    assert "ema=0.7 is not what this run was started with" in err
    code, _, err = call(train, *TINY_TOY, "ema=1", cwd=tmp_path)
    assert code == 2
    assert "ema=1 must be at least 0 and at most" in err
