"""Every experiment NAME_paper: it composes, states its values, and trains two steps with these values.

Batches of two, narrow layers, and for the two versions of Demucs 2 s instead of 10, so that a step takes seconds; rate,
channels, excerpt, STFT, target, loss, optimiser, schedule and augmentation are those of the experiment.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.config import shipped
from separate.training.setup import prepare
from tests.conftest import write
from tests.test_config import CONF, choices, composed

NARROW = {
    "blstm": {"units": 8},
    "deep_clustering": {"units": 8, "dimensions": 4},
    "chimera": {"units": 8, "dimensions": 4, "layers": 2},
    "attractor": {"units": 8, "dimensions": 4},
    "unet": {"filters": [4, 4, 4, 4, 4, 8]},
    "open_unmix": {"hidden": 8},
    "tasnet": {"filters": 8, "units": 8},
    "conv_tasnet": {"filters": 16, "bottleneck": 8, "hidden": 8, "skip": 8, "layers": 3, "repeats": 1},
    "dprnn": {"filters": 8, "bottleneck": 8, "blocks": 1, "units": 8},
    "wave_unet": {"filters": 2},
    "wavenet": {"residual": 4, "skip": 4, "final": [8, 8], "stacks": 1},
    "demucs": {"hidden": 4, "lstm_layers": 1},
    "hdemucs": {"hidden": 8, "dconv_attn": 6, "dconv_lstm": 6},
}
SHORTER = {"demucs": ["data.excerpt=2"], "hdemucs": ["data.excerpt=2"]}  # seconds
PAPERS = sorted(name.removesuffix("_paper") for name in choices("experiment") if name.endswith("_paper"))
MODELS = set(shipped("model")) - {"lstm", "gru", "bgru", "dnn"}  # variants of blstm, and a network of no single paper


def recordings(root: Path, config) -> Path:
    """Noise in the layout, rate and channels of an experiment, a little longer than its excerpt."""
    data, rng = config.data, np.random.default_rng(0)
    frames = round((data.excerpt + 0.3) * data.sample_rate)
    for split in (data.splits["train"], data.splits["valid"]):
        for index in range(2):
            parts = {name: 0.1 * rng.standard_normal((frames, data.channels)) for name in data.sources}
            if data.name == "wsj0mix":
                parts["mix"] = sum(parts.values())
            for name, audio in parts.items():
                track = f"{index}/{name}" if data.name == "stems" else f"{name}/{index}"
                write(root / split / f"{track}.wav", audio, data.sample_rate, subtype="FLOAT")
    return root


def test_every_model_has_the_experiment_of_its_paper():
    assert set(PAPERS) == MODELS


@pytest.mark.parametrize("name", PAPERS)
def test_the_experiment_of_a_paper_trains_two_steps_with_its_values(name, tmp_path, call):
    shorter = SHORTER.get(name, [])
    config = composed(f"experiment={name}_paper", "data.root=x", *shorter)
    root = recordings(tmp_path / "data", config)
    narrow = [f"model.{key}={value}".replace(" ", "") for key, value in NARROW[name].items()]
    quick = ["trainer.epochs=1", "trainer.steps_per_epoch=2", "trainer.valid_steps=1", "batch_size=2"]
    local = ["data.workers=0", "logger.tensorboard=false", "device=cpu", "run=r", f"data.root={root}"]
    code, _, err = call(train, f"experiment={name}_paper", *narrow, *shorter, *quick, *local, cwd=tmp_path)
    assert code == 0, err
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text())
    assert line["step"] == 2
    assert np.isfinite([line["train/loss"], line["valid/loss"]]).all()
    assert line["learning_rate"] == config.optimizer["lr"]
    group = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["training"]["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == config.optimizer["weight_decay"]
    assert (config.input_level, config.trainer.precision) == ("none", "fp32")  # no paper has our defaults


def test_every_value_of_an_experiment_has_a_comment_with_its_source():
    """Each line that sets a value has a comment; files that use (paper) and (ours) explain them."""
    for name in PAPERS:
        text = (CONF / "experiment" / f"{name}_paper.yaml").read_text()
        head, body = text.split("\ndefaults:", 1)
        assert f"experiment={name}_paper" in head
        for line in body.splitlines():
            if re.match(
                r" *(?!data:|model:$|augment:$|trainer:$|- override|interchangeable|swap|channels|clip)\w+: \S", line
            ):
                assert "  # " in line, (name, line)
        if "(paper)" in body:
            assert "# (paper): the paper's value to our knowledge" in head


def test_jansson_s_excerpt_is_one_patch_of_each_network():
    config = composed("experiment=unet_paper", "data.root=x")
    samples = round(config.data.excerpt * config.data.sample_rate)
    assert samples == (config.model["patch"] - 1) * config.stft.hop
    assert config.model["joint"] is False


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("optimizer=adamw", torch.optim.AdamW),
        ("optimizer=rmsprop", torch.optim.RMSprop),
        ("optimizer=sgd", torch.optim.SGD),
    ],
)
def test_optimizers_are_those_of_torch_with_the_stated_options(override, kind, tmp_path):
    state, _ = prepare(plain(override), tmp_path)
    assert type(state.optimizer) is kind
    stated = {key: value for key, value in shipped("optimizer")[override[10:]].items() if key != "_target_"}
    group = state.optimizer.param_groups[0]
    assert {key: list(group[key]) if isinstance(group[key], tuple) else group[key] for key in stated} == stated


@pytest.mark.parametrize(("scheduler", "rates"), [("step", [1, 1, 0.98, 0.98]), ("exponential", [1, 0.95, 0.9025])])
def test_the_learning_rate_falls_epoch_by_epoch(scheduler, rates, tmp_path):
    state, _ = prepare(plain(f"scheduler={scheduler}", "optimizer.lr=1.0"), tmp_path)
    for rate in rates:
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        state.optimizer.step()
        state.scheduler.step()


def plain(*overrides: str) -> dict:
    tiny = ["data.tracks={train: 1, valid: 1, test: 1}", "model.units=4", "model.layers=1", "run=r", "device=cpu"]
    return asdict(composed(*tiny, *overrides))
