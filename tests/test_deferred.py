"""Metrics that are read one step later, as on a GPU, tested on the CPU: nothing else changes."""

from copy import deepcopy

import pytest
import torch

from separate import checkpoint
from separate.data.loader import TrainingSteps
from separate.errors import SeparateError
from separate.parts import build_separator
from separate.training import nonfinite
from separate.training.deferred import fuse, skips_on_device, statistics
from separate.training.saving import save
from separate.training.step import flush, train_step
from separate.training.trainer import fit
from tests.test_trainer import first_batch, start, weights
from tests.tiny import MODELS, batch_of, config_of

MEASURED = ("train/steps_per_second", "train/examples_per_second", "train/waiting", "train/memory")


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_run_with_steps_that_are_not_finite_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    whole = TrainingSteps.__getitem__

    def spoiled(self, number):
        drawn = whole(self, number)
        if number in (0, 5, 6, 7):  # the very first, and the last of an epoch
            drawn.sources[1, 0, 0, 100] = torch.nan
        return drawn

    monkeypatch.setattr(TrainingSteps, "__getitem__", spoiled)
    found = []
    for lags in (False, True):
        state, training = start(tmp_path / str(lags), clip=1.0)
        training.lags, training.options.checkpoint_minutes = lags, -1.0  # a checkpoint after each step
        evidence = []
        monkeypatch.setattr(nonfinite, "log", _Log(evidence))
        fit(state, training)
        contents = checkpoint.read(tmp_path / str(lags) / "checkpoints" / "last.ckpt")
        batches = sorted(path.name for path in (tmp_path / str(lags) / "nonfinite").iterdir())
        warned = [message.replace(str(tmp_path / str(lags)), "") for message in evidence]
        scores = {name: value for name, value in contents["scores"].items() if name not in MEASURED}
        del contents["training"]["seconds"]
        found.append((contents["model"], contents["training"], scores, batches, warned))
    assert found[0][3] == ["step_0.pt", "step_5.pt", "step_6.pt", "step_7.pt"]
    assert equal(found[0], found[1])


class _Log:
    def __init__(self, warned):
        self.warning = warned.append
        self.info = lambda *message: None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {}), ("Adam", {"fused": True}), ("Adam", {"fused": True, "amsgrad": True}), ("AdamW", {"fused": True}),
        ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "fused": True}), ("RMSprop", {}), ("Adagrad", {}),
        ("Adadelta", {}), ("NAdam", {}), ("RAdam", {}), ("Rprop", {}),
    ],
)  # fmt: skip
def test_no_optimizer_state_changes_in_a_step_that_is_not_applied(name, options, tmp_path):
    states = []
    for lags in (False, True):
        state, training = start(tmp_path, clip=None)
        training.lags = lags
        state.optimizer = getattr(torch.optim, name)(state.separator.parameters(), lr=0.01, **options)
        good, bad = first_batch(training), first_batch(training)
        bad.sources[0, 0, 0, 7] = torch.inf
        for drawn in (bad, good, bad, good):
            train_step(state, training, drawn)
        flush(state, training)
        states.append((weights(state), state.optimizer.state_dict()))
    assert equal(*states)
    assert all(weight.isfinite().all() for weight in states[1][0])


def test_adam_is_fused_on_a_gpu_unless_the_user_chose(tmp_path):
    weight = [torch.nn.Parameter(torch.zeros(2))]
    for device, options, fused in (
        ("cuda", {}, True), ("cpu", {}, None), ("cuda", {"foreach": True}, None), ("cuda", {"fused": False}, False),
    ):  # fmt: skip
        for kind in (torch.optim.Adam, torch.optim.AdamW):
            optimizer = kind(weight, **options)
            fuse(optimizer, torch.device(device))
            assert optimizer.param_groups[0]["fused"] == fused
            assert skips_on_device(optimizer) == bool(fused)
    optimizer = torch.optim.SGD(weight, lr=0.1)
    fuse(optimizer, torch.device("cuda"))
    assert not skips_on_device(optimizer)


@pytest.mark.parametrize("begun", [True, None])
def test_a_resumed_run_uses_the_kernels_of_its_device(begun, tmp_path):
    state, training = start(tmp_path)
    state.optimizer = torch.optim.Adam(state.separator.parameters(), fused=begun)
    train_step(state, training, first_batch(training))
    saved = deepcopy(state.capture())
    moved, _ = start(tmp_path / "moved")
    moved.optimizer = torch.optim.Adam(moved.separator.parameters(), fused=None if begun else True)
    moved.restore(saved)
    assert bool(moved.optimizer.param_groups[0]["fused"]) != bool(begun)
    for each in (state, moved):
        torch.manual_seed(0)  # dropout
        train_step(each, training, first_batch(training))
    for ours, theirs in zip(weights(moved), weights(state), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_returns_the_metrics_of_the_step_before(tmp_path):
    state, training = start(tmp_path)
    training.lags = True
    batch = first_batch(training)
    assert train_step(state, training, batch) == {}
    first = train_step(state, training, batch)
    second = flush(state, training)
    assert first["steps"] == second["steps"] == 1
    assert second["loss"] < first["loss"]
    assert flush(state, training) == {}


def test_several_steps_in_a_row_stop_the_run_one_step_later(tmp_path):
    state, training = start(tmp_path)
    training.lags = True
    batch = first_batch(training)
    before = [parameter.clone() for parameter in state.separator.parameters()]
    batch.sources[:] = torch.inf
    for _ in range(training.options.max_bad_steps):
        train_step(state, training, batch)
    with pytest.raises(SeparateError, match=r"5 steps in a row.*step 4.*gradient norm.*song_.*Lower optimizer.lr"):
        train_step(state, training, batch)
    assert equal(before, list(state.separator.parameters()))


def test_a_checkpoint_holds_the_metrics_of_the_last_step(tmp_path):
    state, training = start(tmp_path)
    training.lags = True
    train_step(state, training, first_batch(training))
    assert state.sums == {}
    save(state, training, "last")
    saved = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["training"]["sums"]
    assert saved == state.sums
    assert saved["steps"] == 1


@pytest.mark.parametrize("lags", [False, True])
def test_an_overflow_is_left_to_the_gradient_scaler(lags, tmp_path):
    state, training = start(tmp_path)
    training.lags = lags
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights(state)
    loud = first_batch(training)
    loud.sources *= 1e4
    train_step(state, training, loud)
    flush(state, training)
    assert equal(before, weights(state))
    assert state.scaler.get_scale() == 2.0**126
    assert (state.skipped, state.step) == (0, 1)
    assert not (tmp_path / "nonfinite").exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_step_changes_only_buffers_that_checkpoints_save(model):
    separator = build_separator(config_of(model)).train()
    kept = {id(buffer) for buffer in statistics(separator)}
    others = {name: buffer for name, buffer in separator.named_buffers() if id(buffer) not in kept}
    assert "stft.window" in others
    versions = {name: buffer._version for name, buffer in others.items()}
    separator.separate(batch_of(separator.stft))
    assert versions == {name: buffer._version for name, buffer in others.items()}
