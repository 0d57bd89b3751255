"""`debug=anomaly`, `debug=profile` and `debug=overfit`."""

import json
import re

import pytest
import torch
from torch import nn

from separate.cli import train
from separate.errors import SeparateError, UsageError
from separate.parts import build_loss, build_separator
from separate.training import profiling
from separate.training.anomaly import Anomalies
from separate.training.overfitting import overfit, verdict
from separate.training.setup import prepare
from separate.training.step import train_step
from tests.conftest import TINY_TOY
from tests.test_scripts import SCRIPTS, run
from tests.test_trainer import CONFIG, first_batch, start, weights
from tests.tiny import batch_of, config_of, section


class Spoil(nn.Module):
    """Passes its input on, and turns one value (`forward`) or the gradient of one value (`backward`) to NaN."""

    def __init__(self, where: str):
        super().__init__()
        self.where = where

    def forward(self, x):
        if self.where == "forward":
            return x * torch.where(torch.arange(x.shape[-1]) == 3, torch.nan, 1.0)
        if self.where == "backward":
            return torch.cat([x[..., :3], infinite_slope(x[..., 3:4]), x[..., 4:]], -1)
        return x


def infinite_slope(x):
    """x, with a gradient of NaN: the slope of sqrt at 0 is infinite."""
    return x + (x - x.detach()).square().sqrt()


class Spoiled(nn.Module):
    """Masks by linear layers, with `Spoil` in the middle."""

    provides = ("masks",)

    def __init__(self, where: str):
        super().__init__()
        self.where = where
        self.body = nn.Sequential(nn.Linear(65, 16), nn.ReLU(inplace=True), Spoil(where), nn.Linear(16, 130))

    def forward(self, spectrogram):
        masks = self.body(spectrogram.abs().mT).sigmoid()  # (B, C, N, 2 F)
        if self.where == "parent":
            masks = infinite_slope(masks)
        return {"masks": masks.unflatten(-1, (2, 65)).permute(0, 3, 1, 4, 2)}


def spoiled(folder, where, **trainer):
    options = {**CONFIG["trainer"], "anomaly": True, **trainer}
    model = {"_target_": f"{__name__}.Spoiled", "where": where}
    return prepare({**CONFIG, "model": model, "trainer": options}, folder)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "forward",
            r"step 0: first in the forward pass of network.body.2 \(Spoil\): its inputs are finite, and 256 of "
            r"4096 values of its output \(4, 1, 64, 16\) are not finite; separate-train debug=replay dump=\S+step_0.pt",
        ),
        (
            "backward",
            r"first in the backward pass of network.body.2 \(Spoil\): the gradients of its outputs are finite, and "
            r"256 of 4096 values of the gradient of its input \(4, 1, 64, 16\) are not finite",
        ),
        (
            "parent",
            r"first in the backward pass of network \(Spoiled\): the gradients of its outputs are finite, and "
            r"33280 of 33280 values of the gradient of an intermediate result \(4, 1, 64, 130\) are not finite",
        ),
    ],
)
def test_the_run_stops_and_names_the_module_that_is_not_finite_first(tmp_path, where, said):
    state, training = spoiled(tmp_path, where)
    with pytest.raises(SeparateError, match=said):
        train_step(state, training, first_batch(training))
    assert (tmp_path / "nonfinite" / "step_0.pt").exists()


def test_a_replay_names_the_module_and_the_line_of_the_operator(tmp_path, call):
    state, training = spoiled(tmp_path / "run", "backward", anomaly=False)
    assert training.anomalies is None
    train_step(state, training, first_batch(training))
    dump = tmp_path / "run" / "nonfinite" / "step_0.pt"
    code, out, err = call(train, "debug=replay", f"dump={dump}", f"trust=[{__name__}]", cwd=tmp_path)
    assert code == 0, err
    assert "first in the backward pass of network.body.2 (Spoil)" in out
    assert re.search(r"the gradient of \w+Backward0, called at test_debug.py:\d+ is NaN", out), out


def test_a_batch_that_is_not_finite_is_no_fault_of_the_network(tmp_path):
    state, training = start(tmp_path, anomaly=True)
    batch = first_batch(training)
    batch.sources[1, 0, 0, 100] = torch.nan
    with pytest.raises(
        SeparateError, match="the batch is not finite before any module computes: in network .MaskInfer"
    ):
        train_step(state, training, batch)


def test_a_parameter_that_is_not_finite_is_named(tmp_path):
    state, training = start(tmp_path, anomaly=True)
    state.separator.network.head.linear.bias.data[5] = torch.inf
    state.separator.network.head.linear.bias.data[6] = torch.nan
    with pytest.raises(
        SeparateError, match=r"forward pass of network.head.linear .* are not finite; its bias is not finite either;"
    ):
        train_step(state, training, first_batch(training))


def test_an_overflow_in_the_loss_is_named_after_the_loss(tmp_path):
    state, training = start(tmp_path, anomaly=True)
    training.loss.register_forward_hook(lambda module, args, out: (out[0] * torch.inf, out[1]), prepend=True)
    with pytest.raises(SeparateError, match=r"first in the forward pass of loss \(SpectralLoss\): its inputs are fini"):
        train_step(state, training, first_batch(training))


@pytest.mark.parametrize("model", ["blstm", "conv_tasnet", "unet", "hdemucs", "attractor"])
def test_the_hooks_change_no_gradient(model):
    config = config_of(model, loss=section("loss", "si_sdr"), target=section("target", "waveform"))
    gradients = []
    for watched in (False, True):
        torch.manual_seed(0)
        separator = build_separator(config)
        loss = build_loss(config, separator)
        separator.train()
        anomalies = Anomalies(separator.network, loss) if watched else None
        batch = loss.prepare(batch_of(separator.stft))
        loss(separator.separate(batch), batch)[0].backward()
        gradients.append([p.grad for p in separator.parameters()])
        assert anomalies is None or anomalies.first is None
    for before, after in zip(*gradients, strict=True):
        assert (before is None and after is None) or torch.equal(before, after)


def test_a_finite_run_with_hooks_is_the_same_run(tmp_path):
    ended = []
    for anomaly in (False, True):
        state, training = start(tmp_path / str(anomaly), anomaly=anomaly, accumulate=2)
        for number in range(3):
            train_step(state, training, training.steps[number])
        ended.append(weights(state))
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


def test_a_profile_has_a_trace_and_a_table_of_the_step(tmp_path, call):
    arguments = ["debug=profile", *TINY_TOY[1:], "batch_size=2", "data.excerpt=1.0", "data.workers=0", "run=run"]
    code, _, err = call(train, *arguments, "trainer.profile=4", cwd=tmp_path)
    assert code == 0, err
    text = (tmp_path / "run" / "train.log").read_text()
    rows = {name: float(ms) for name, ms in re.findall(r"^([a-z][a-z ]+?)  +([\d.]+)  +-?[\d.]+$", text, re.MULTILINE)}
    assert set(rows) == {*profiling.STAGES, "all else", "step"}
    step = rows.pop("step")
    assert sum(rows.values()) == pytest.approx(step, abs=0.05)
    assert min(rows.values()) >= 0
    assert rows["forward"] > 0 and rows["backward"] > 0
    operators = re.findall(r"^aten::\w+ +[\d.]+ +[\d.]+ +\d+$", text, re.MULTILINE)
    assert 5 <= len(operators) <= profiling.OPERATORS
    events = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: ranges.count(name) for name in profiling.STAGES} == dict.fromkeys(profiling.STAGES, 4)
    assert profiling.stage("forward") is profiling.stage("loss")  # none afterwards


def test_a_run_too_short_for_its_profile_is_refused(tmp_path):
    state, training = start(tmp_path, epochs=1, steps_per_epoch=4, profile=5)
    with (
        pytest.raises(
            UsageError, match=r"trainer.profile=5 needs 8 steps, .* but the run has 4; raise trainer.steps_per_ep"
        ),
        profiling.profiling(state, training),
    ):
        pass


def test_overfitting_lowers_the_loss_of_one_batch_and_writes_no_checkpoint(tmp_path, call):
    arguments = ["debug=overfit", *TINY_TOY[1:], "data.excerpt=1.0", "run=run", "model.units=16", "optimizer.lr=0.01"]
    code, _, err = call(train, *arguments, "trainer.overfit=60", cwd=tmp_path)
    assert code == 0, err
    text = (tmp_path / "run" / "train.log").read_text()
    found = re.search(r"batch of 4 after 60 steps: loss ([-\d.]+), at the start ([-\d.]+)", text)
    assert float(found[1]) < 0.7 * float(found[2])
    assert re.search(r"^learned: the loss fell and SI-SDR rose by", text, re.MULTILINE)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".hydra", "config.yaml", "train.log"}


def test_overfitting_takes_the_same_batch_without_augmentation_and_needs_no_validation_data(tmp_path):
    folder, changed = tmp_path / "run", {"polarity": 1.0}
    options = {**CONFIG["trainer"], "overfit": 3}
    state, training = prepare({**CONFIG, "trainer": options, "augment": changed}, folder)
    assert training.valid is training.train
    assert state.scheduler is None
    seen = []
    training.loss.register_forward_hook(lambda module, inputs, out: seen.append(inputs[1].sources.clone()))
    overfit(state, training)
    plain = prepare(CONFIG, folder)[1].steps[0].sources
    assert len(seen) == 5  # before, three steps, after
    assert all(torch.equal(sources, plain) for sources in seen)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((1.0, 0.0), (1.0, 9.0), "NOT learned: the loss did not fall"),
        ((1.0, 0.0), (float("nan"), 9.0), "NOT learned: the loss did not fall"),
        ((1.0, 0.0), (0.1, 0.5), "NOT learned: the loss fell and SI-SDR changed by 0.50 dB only"),
        ((1.0, float("nan")), (0.1, float("nan")), "the loss fell; without references"),
        ((1.0, 0.0), (0.1, 12.0), "learned: the loss fell and SI-SDR rose by 12.00 dB"),
    ],
)
def test_the_verdict_needs_both_the_loss_and_the_estimates(before, after, said):
    names = ("loss", "si_sdr")
    assert verdict(dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True))).startswith(said)


def test_the_benchmark_compares_the_loop_and_gives_the_share_of_the_matrix_peak(tmp_path):
    out, tiny = tmp_path / "bench.json", ["model.units=16", "model.layers=2", "data.excerpt=0.5", "batch_size=2"]
    options = ["--steps", "2", "--threads", "1", "--out", str(out)]
    done = run("bench_training.py", "blstm", "--loop", "--peak", *options, "--set", *tiny)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["blstm"]["ratio"] == pytest.approx(found["blstm"]["loop"] / found["blstm"]["bare"])
    assert 0 < found["blstm"]["waiting"] < 1
    for figures in (found["peak"]["fp32"], found["peak"]["bf16"]):
        assert 0 < figures["share"] == figures["gflops"] / figures["peak"] < 1
    assert "hdemucs is no case of this measurement" in run("bench_training.py", "hdemucs", "--loop").stderr


def test_the_benchmark_counts_each_weight_in_the_forward_pass_and_in_both_gradients(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_loop import blstm_flops

    lstm, head = nn.LSTM(129, 300, 4, bidirectional=True), nn.Linear(600, 2 * 129)
    matrices = [p.numel() for p in (*lstm.parameters(), *head.parameters()) if p.ndim == 2]
    first = 2 * lstm.weight_ih_l0.numel()  # both directions; their input has no gradient
    assert blstm_flops(16, 400, 129, 300, 4) == 2 * 16 * 400 * (3 * sum(matrices) - first)
