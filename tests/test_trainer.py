"""The training loop: learning, stopping, steps that are not finite, and the keys that resuming may change."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from separate import checkpoint
from separate.cli import train
from separate.compose import data_config
from separate.config import TrainerConfig
from separate.errors import SeparateError, UsageError
from separate.training.interruption import Stopped
from separate.training.nonfinite import read_dump
from separate.training.resume import resumed_config
from separate.training.setup import prepare
from separate.training.state import State, Training
from separate.training.step import train_step
from separate.training.trainer import end_epoch, fit
from tests.conftest import TINY_TOY, target

CONFIG = {
    "data": asdict(
        data_config(
            {
                "_target_": target("toy"),
                "sources": ["voice", "drums"],
                "sample_rate": 8000,
                "channels": 1,
                "excerpt": 0.5,
                "tracks": {"train": 2, "valid": 1},
            }
        )
    ),
    "stft": {"n_fft": 128, "hop": 64, "window": "hann"},
    "model": {"_target_": "separate.models.recurrent.MaskInference", "units": 16, "layers": 2},
    "target": {"_target_": "separate.targets.tpsa"},
    "loss": {"_target_": "separate.losses.SpectralLoss"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 0.5, "patience": 0},
    "augment": {},
    "cache": {},
    "trainer": asdict(TrainerConfig(epochs=3, steps_per_epoch=4)),
    "batch_size": 4,
    "seed": 0,
    "device": "cpu",
}
CONFIG["target"]["_partial_"] = True


def start(folder: Path, **options: object) -> tuple[State, Training]:
    config = {**CONFIG, "trainer": asdict(replace(TrainerConfig(**CONFIG["trainer"]), **options))}
    return prepare(config, folder)


def first_batch(training: Training):
    from separate.data.loader import TrainingSteps

    return TrainingSteps(training.train, 4, 0)[0]


def test_repeating_one_batch_lowers_the_loss(tmp_path):
    state, training = start(tmp_path)
    batch = first_batch(training)
    losses = [train_step(state, training, batch)["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_fit_returns_the_best_value_and_keeps_its_checkpoint(tmp_path):
    state, training = start(tmp_path)
    best = fit(state, training)
    assert (state.epoch, state.step) == (3, 12)
    contents = checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")
    assert contents["scores"]["valid/loss"] == best == state.best
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["training"]["epoch"] == 3


def test_a_run_out_of_time_that_was_stopped_in_its_validation_is_validated_when_resumed(tmp_path, monkeypatch):
    state, training = start(tmp_path, epochs=50, max_minutes=1e-6)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("separate.training.trainer.validate", interrupt)
        fit(state, training)
    assert (state.epoch, state.step) == (0, 1)
    resumed, training = start(tmp_path, epochs=50, max_minutes=1e-6)
    resumed.restore(checkpoint.read(tmp_path / "checkpoints" / "last.ckpt"))
    best = fit(resumed, training)
    assert (resumed.epoch, resumed.step) == (1, 1)
    assert best == checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")["scores"]["valid/loss"]


def interrupt(state, training, interruption):
    interruption.reason = "interrupted"
    interruption.check()


def test_the_run_stops_early_after_patience_epochs_without_enough_improvement(tmp_path):
    state, training = start(tmp_path, epochs=50, patience=2, min_delta=100.0)
    fit(state, training)
    assert state.epoch == 3  # the first is an improvement over nothing


def test_the_run_stops_when_its_time_is_over(tmp_path):
    state, training = start(tmp_path, epochs=50, max_minutes=1e-6)
    fit(state, training)
    assert (state.epoch, state.step) == (1, 1)
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_validation_can_be_limited_to_some_batches(tmp_path):
    state, training = start(tmp_path, epochs=1, valid_steps=2)
    seen = []
    training.loss.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[1].mixture)))
    fit(state, training)
    assert len(training.valid) == 16
    assert seen == [4] * 4 + [4] * 2  # steps, then validation


@pytest.mark.parametrize(("monitor", "better"), [("valid/si_sdr", 2.0), ("valid/loss", -2.0)])
def test_the_monitored_metric_knows_its_direction_and_nan_is_never_best(tmp_path, monitor, better):
    state, training = start(tmp_path, monitor=monitor, patience=5)
    for value, stale in ((1.0, 0), (1.0 - better / 4, 1), (float("nan"), 2), (1.0 + better, 0), (float("nan"), 1)):
        end_epoch(state, training, {monitor: value, "train/loss": 0.0})
        assert state.stale == stale
    assert state.best == 1.0 + better
    assert checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")["scores"][monitor] == 1.0 + better
    assert state.optimizer.param_groups[0]["lr"] < 0.01  # plateaus have lowered it


@pytest.mark.parametrize("monitor", ["train/loss", "train/gradient_norm"])
def test_a_quantity_of_the_training_steps_can_choose_the_best_epoch(tmp_path, monitor):
    state, training = start(tmp_path, monitor=monitor)
    fit(state, training)
    last = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["scores"]
    best = checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")["scores"]
    assert best[monitor] == state.best <= last[monitor]


def test_an_unknown_monitor_is_refused_before_training(tmp_path):
    state, training = start(tmp_path, monitor="valid/sdr")
    with pytest.raises(UsageError, match=r"trainer.monitor=valid/sdr is unknown; choose from valid/loss, valid/si_sdr"):
        fit(state, training)


def weights(state: State) -> list[Tensor]:
    return [value.clone() for value in state.separator.state_dict().values()]


def test_a_non_finite_step_is_not_applied_and_its_batch_is_kept(tmp_path, caplog):
    state, training = start(tmp_path)
    batch = first_batch(training)
    train_step(state, training, batch)
    before = weights(state)
    batch.sources[1, 0, 0, 100] = float("nan")
    assert train_step(state, training, batch) == {"skipped": 1}
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))
    assert (state.step, state.skipped) == (2, 1)
    evidence = read_dump(tmp_path / "nonfinite" / "step_1.pt")["batch"]
    assert evidence["mixture"].isnan().sum() == 1
    assert evidence["tracks"] == batch.tracks
    assert "step 1 was not applied: loss nan" in caplog.text
    train_step(state, training, first_batch(training))
    assert state.skipped == 0


def test_several_non_finite_steps_in_a_row_stop_the_run(tmp_path):
    state, training = start(tmp_path)
    batch = first_batch(training)
    batch.sources[:] = float("inf")
    for _ in range(training.options.max_bad_steps - 1):
        train_step(state, training, batch)
    with pytest.raises(SeparateError, match=r"5 steps in a row.*step 4.*gradient norm.*song_.*Lower optimizer.lr"):
        train_step(state, training, batch)


def test_gradients_are_clipped(tmp_path):
    state, training = start(tmp_path, clip=1e-3)
    train_step(state, training, first_batch(training))
    squares = [p.grad.square().sum() for p in state.separator.parameters() if p.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_restored_state_goes_on_bit_for_bit(tmp_path):
    whole, training = start(tmp_path / "whole")
    fit(whole, training)
    part, training = start(tmp_path / "part", epochs=2)
    fit(part, training)
    torch.manual_seed(99)  # another process
    resumed, training = start(tmp_path / "part")
    resumed.restore(checkpoint.read(tmp_path / "part" / "checkpoints" / "last.ckpt"))
    fit(resumed, training)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert whole.capture()["training"]["optimizer"]["state"][0]["step"] == 12
    assert resumed.best == whole.best


def test_a_resumed_run_keeps_its_configuration_except_for_keys_that_may_change():
    saved = {"optimizer": {"lr": 0.1}, "trainer": {"epochs": 5, "clip": 1.0}, "data": {"root": "/a"}, "run": "x"}
    composed = {"optimizer": {"lr": 0.001}, "trainer": {"epochs": 9, "clip": 2.0}, "data": {"root": "/b"}, "run": "x"}
    assert resumed_config(saved, composed, ["run=x", "resume=true"]) == saved
    changed = resumed_config(saved, composed, ["trainer.epochs=9", "data.root=/b"])
    assert changed["trainer"] == {"epochs": 9, "clip": 1.0}
    assert changed["data"]["root"] == "/b"
    for override in ("optimizer.lr=0.001", "optimizer=adam", "+experiment=x"):
        with pytest.raises(UsageError, match=r"(optimizer.lr=0.001|trainer.clip=2.0) is not what this run was started"):
            resumed_config(saved, composed, [override])


def test_the_layout_of_a_resumed_run_can_be_named_again_to_say_where_the_data_are_now():
    saved = {"data": {"_target_": target("pools"), "root": "/a", "excerpt": 3.0}}
    composed = {"data": {"_target_": target("pools"), "root": "/b", "excerpt": 4.0}}
    found = resumed_config(saved, composed, ["data=pools", "data.root=/b"])
    assert found == {"data": {"_target_": target("pools"), "root": "/b", "excerpt": 3.0}}
    with pytest.raises(
        UsageError, match="data._target_=separate.data.layouts.stems.Stems is not what this run was started with"
    ):
        resumed_config(saved, {"data": {"_target_": target("stems"), "root": "/b"}}, ["data=stems", "data.root=/b"])


def test_a_cosine_schedule_cannot_be_extended():
    saved = {"trainer": {"epochs": 5}, "scheduler": {"T_max": 5}}
    composed = {"trainer": {"epochs": 9}, "scheduler": {"T_max": 9}}
    with pytest.raises(UsageError, match="learning rate of this run ends at epoch 5"):
        resumed_config(saved, composed, ["trainer.epochs=9"])


def test_sections_newer_than_the_run_have_their_defaults_and_cannot_be_changed():
    saved, composed = {"trainer": {"epochs": 5}}, {"trainer": {"epochs": 5}, "augment": {"gain": None, "swap": 0.0}}
    assert resumed_config(saved, composed, []) == composed
    composed["augment"]["gain"] = [-3.0, 3.0]
    with pytest.raises(UsageError, match=r"augment.gain=\[-3.0, 3.0\] is not what this run was started with"):
        resumed_config(saved, composed, ["augment.gain=[-3,3]"])


def test_keys_that_an_experiment_leaves_open_stay_as_saved():
    saved = {"trainer": {"epochs": 50}, "model": {"units": 3}}
    composed = {"trainer": {"epochs": 100}, "model": {"units": 3}}
    assert resumed_config(saved, composed, ["experiment=wide"]) == saved


def test_metrics_after_the_resumed_epoch_are_dropped(tmp_path):
    from separate.config import LoggerConfig
    from separate.training.runlog import RunLog

    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    RunLog(tmp_path, LoggerConfig(tensorboard=False), epoch=2)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_auto_precision_is_resolved_when_a_run_starts_and_an_older_run_stays_in_float32(tmp_path, call):
    """Otherwise a run that moves to a CPU with bfloat16 would continue in another precision."""
    fast = torch.cpu.get_capabilities()
    expected = "bf16" if fast.get("avx512_bf16") or fast.get("amx_bf16") else "fp32"
    call(train, *TINY_TOY, "trainer.epochs=1", "run=r", cwd=tmp_path)
    path = tmp_path / "r" / "checkpoints" / "last.ckpt"
    contents = checkpoint.read(path)
    assert contents["config"]["trainer"]["precision"] == expected
    older = {key: value for key, value in contents["config"].items() if key not in ("rescale", "input_level")}
    older["trainer"] = {**older["trainer"], "precision": "auto"}
    checkpoint.save(path, {**contents, "config": older})
    for epochs, given, found in ((2, [], "fp32"), (3, ["trainer.precision=bf16"], "bf16")):
        code, _, err = call(train, "run=r", "resume=true", f"trainer.epochs={epochs}", *given, cwd=tmp_path)
        assert code == 0, err
        assert f"precision: {found}" in (tmp_path / "r" / "config.yaml").read_text()
