"""Preflight: it reports, it finds what would fail at the first validation, and it leaves no trace."""

import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import metric
from separate.training.preflight import preflight
from separate.training.setup import measure, prepare
from separate.training.state import random_states
from tests.conftest import TINY_TOY
from tests.test_trainer import CONFIG, start

PHASES = ["forward and loss", "backward", "optimizer step", "validation", "checkpoint", "total"]


@metric(label="raises", unit="dB")
def raising(estimates, sources, mixture):
    raise SeparateError("this metric raises")


def everything(state):
    """All that a run depends on, as one nested structure with tensors."""
    return {
        **state.capture(),
        "random": random_states(state.separator.device),
        "buffers": {name: buffer.clone() for name, buffer in state.separator.named_buffers()},
        "modes": [module.training for module in state.separator.modules()],
        "gradients": [parameter.grad for parameter in state.separator.parameters()],
        "rates": [group["lr"] for group in state.optimizer.param_groups],
    }


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, (list, tuple)) else value


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}},
        {"optimizer": {"_target_": "torch.optim.Adagrad", "lr": 0.1}},
        {"ema": 0.9, "ema_epoch": 0.5},
        {"model": {**CONFIG["model"], "dropout": 0.5, "normalisation": "learnable"}},
        {"trainer": {**CONFIG["trainer"], "valid_full": True, "clip": "auto", "accumulate": 2}},
    ],
)
def test_nothing_has_changed_after_a_preflight(changes, tmp_path):
    state, training = prepare({**CONFIG, **changes}, tmp_path)
    measure(state, training)
    before = copied(everything(state))
    preflight(state, training)
    assert same(before, copied(everything(state)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_after_a_preflight_is_the_run_without_it_bit_for_bit(workers, call, tmp_path):
    options = [*TINY_TOY, "ema=0.9", "model.dropout=0.5", "trainer.threads=1", f"data.workers={workers}"]
    for name, preflown in (("with", "true"), ("without", "false")):
        code, out, err = call(train, *options, f"trainer.preflight={preflown}", f"run={name}", cwd=tmp_path)
        assert code == 0, err
        assert (preflown == "true") == ("preflight: step, validation and checkpoint work" in out)
    one, other = (checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("with", "without"))
    for contents in (one, other):
        del contents["training"]["seconds"], contents["config"]
        contents["scores"] = {key: value for key, value in contents["scores"].items() if key.startswith("valid")}
    assert same(one, other)


def test_debug_preflight_prints_a_table_and_leaves_no_folder(call, tmp_path):
    code, out, err = call(train, "debug=preflight", *TINY_TOY[1:], "data.workers=0", "run=r", cwd=tmp_path)
    assert code == 0, err
    rows = {line[:18].strip(): line[18:].split() for line in out.splitlines() if not line.startswith("[")}
    assert list(rows) == ["", *PHASES]
    assert all(float(seconds) >= 0 and float(memory) > 0.01 for seconds, memory in (rows[name] for name in PHASES))
    assert not (tmp_path / "r").exists()


def test_a_resumed_run_has_no_preflight_and_refuses_to_do_only_that(call, tmp_path):
    code, out, _ = call(train, *TINY_TOY, "run=r", cwd=tmp_path)
    assert code == 0 and "preflight:" in out
    code, out, _ = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0 and "epoch 2" in out and "preflight:" not in out
    code, _, err = call(train, "run=r", "resume=true", "debug=preflight", cwd=tmp_path)
    assert code == 2 and "trainer.preflight=only checks a new run" in err


def test_a_metric_that_raises_is_found_before_the_first_epoch(tmp_path):
    state, training = prepare({**CONFIG, "metrics": ["tests.test_preflight.raising"]}, tmp_path)
    before = copied(everything(state))
    with pytest.raises(SeparateError, match="this metric raises"):
        preflight(state, training)
    assert same(before, copied(everything(state)))


def test_an_unknown_monitor_is_found(tmp_path):
    state, training = start(tmp_path, monitor="valid/accuracy")
    with pytest.raises(UsageError, match="trainer.monitor=valid/accuracy is unknown"):
        preflight(state, training)


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "checkpoints").write_text("a file, where the folder must be")
    state, training = start(tmp_path)
    with pytest.raises(SeparateError, match=r"preflight.ckpt could not be written"):
        preflight(state, training)


def test_a_disk_that_is_too_small_for_the_checkpoints_is_announced(tmp_path, caplog):
    state, training = start(tmp_path)
    preflight(state, training)
    assert "the checkpoints need about" not in caplog.text
    training.options.keep_best = 10**9  # of some 10 kB each
    preflight(state, training)
    assert f"{tmp_path} has" in caplog.text and "the checkpoints need about" in caplog.text


def test_out_of_memory_names_the_ways_out(tmp_path):
    state, training = start(tmp_path, precision="fp32")
    state.separator.network.register_forward_pre_hook(_full)
    with pytest.raises(SeparateError) as raised:
        preflight(state, training)
    said = str(raised.value)
    assert "out of memory on cpu at batch_size=4, data.excerpt=0.5 and trainer.accumulate=1" in said
    assert "batch_size=auto" in said and "trainer.precision=bf16" in said


def _full(*_):
    raise torch.OutOfMemoryError("no memory")
