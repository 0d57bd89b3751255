"""Every model of conf/model at a size that trains in milliseconds, and a batch for them."""

from functools import cache

import torch

from separate import losses, targets
from separate.config import shipped
from separate.data.example import Example
from separate.data.mixing.raw_batch import collate
from separate.loss_builder import own_target
from separate.parts import make_loss

STFT = {"n_fft": 64, "hop": 32, "window": "sqrt_hann"}
RECURRENT = {"layers": 1, "units": 8, "dropout": 0.0}
MODELS = {
    "blstm": RECURRENT,
    "lstm": RECURRENT,
    "bgru": RECURRENT,
    "gru": RECURRENT,
    "dnn": {"layers": 1, "units": 8, "left_context": 1, "right_context": 1, "dropout": 0.0},
    "deep_clustering": {**RECURRENT, "dimensions": 4, "starts": 2},
    "chimera": {**RECURRENT, "dimensions": 4, "starts": 2},
    "attractor": {**RECURRENT, "dimensions": 4, "starts": 2},
    "unet": {"filters": [4, 8], "patch": 8, "dropout": 0.0},
    "open_unmix": {"hidden": 8, "layers": 1, "dropout": 0.0},
    "tasnet": {"filters": 8, "layers": 1, "units": 8, "dropout": 0.0},
    "conv_tasnet": {"filters": 16, "bottleneck": 8, "hidden": 8, "skip": 8, "layers": 2, "repeats": 1},
    "dprnn": {"filters": 8, "bottleneck": 8, "blocks": 1, "units": 8, "chunk": 10},
    "wave_unet": {"filters": 4, "levels": 2},
    "wavenet": {"layers": 3, "stacks": 1, "residual": 8, "skip": 8, "final": [8, 8]},
    "demucs": {"hidden": 4, "depth": 2, "lstm_layers": 1},
    "hdemucs": {"hidden": 8, "nfft": 256, "depth": 4},
}


FIXED = ("distance", "objective", "weights", "zero_mean")  # options that tell losses of one class apart


def without_defaults(spec: dict) -> dict:
    return {key: value for key, value in spec.items() if key != "defaults"}


def config_of(model: str, interchangeable: bool = False, options: dict | None = None, **sections) -> dict:
    spec = {**without_defaults(shipped("model")[model]), **MODELS[model], **(options or {})}
    data = {"sources": ["a", "b"], "channels": 1, "sample_rate": 8000, "interchangeable": interchangeable}
    return {"data": data, "stft": STFT, "model": spec, **sections}


def section(group: str, name: str) -> dict:
    spec = without_defaults(shipped(group)[name])
    return {**spec, "terms": {"l1": 1.0, "si_sdr": 0.1}} if (group, name) == ("loss", "sum") else spec


def loss_of_file(name: str) -> tuple[type, dict, targets.Target | None]:
    """The class of a loss, the options that make it the loss of that name, and its own target or None."""
    spec = shipped("loss")[name]
    own = own_target(spec)
    fixed = {key: spec[key] for key in FIXED if key in spec}
    return getattr(losses, spec["_target_"].rpartition(".")[2]), fixed, own and targets.TARGETS[own]


LOSSES = {name: loss_of_file(name) for name in shipped("loss") if name not in ("sum", "chimera", "mixit")}


def weighted_sum(terms: dict | None, target: str = "tpsa", interchangeable: bool = False):
    sections = {"loss": {**section("loss", "sum"), "terms": terms}, "target": section("target", target)}
    return make_loss(config_of("blstm", interchangeable, **sections))


@cache
def batch_of(stft):
    generator = torch.Generator().manual_seed(1)
    sources = torch.randn(2, 2, 1, 640, generator=generator) * torch.tensor([0.1, 0.3])[:, None, None]
    examples = [Example("noise", example.numpy()) for example in sources]
    return collate(examples).to(torch.device("cpu"), stft)
