"""Every option of every model, loss and target changes the output."""

import inspect
from importlib import import_module

import pytest
import torch

from separate.config import shipped
from separate.errors import UsageError
from separate.parts import build_loss, build_separator
from tests.tiny import LOSSES, MODELS, STFT, batch_of, config_of, section

# another value for each key; those not named here are negated (bool), raised by one (int) or half as much again (float)
OTHER = {
    "recurrent": "rnn",
    "activation": "relu",
    "embedding_activation": "relu",
    "representation": "power",
    "normalisation": "instance",
    "membership": "sigmoid",
    "separates_by": "embeddings",
    "level": -3.0,
    "starts": 1,
    "floor": -5.0,
    "mels": 5,
    "padding": "reflect",
    "inner_activation": "elu",
    "down_activation": "elu",
    "up_activation": "elu",
    "final_activation": "elu",
    "filters": [4, 6],
    "kernel": 6,
    "decoder_kernel": 5,
    "final_kernel": 5,
    "down_kernel": 7,
    "up_kernel": 7,
    "downsampling": "max",
    "upsampling": "nearest",
    "patch": None,
    "bandwidth": 1000.0,
    "norm": "batch",
    "encoder_activation": "relu",
    "final": [8, 4],
    "hidden": 16,
    "nfft": 1024,
    "time_stride": 4,
    "units": 9,
    "dropout": 0.5,
    "convolution": 5,
    "distance": "mse",
    "objective": "whitened",
    "weights": "none",
    "source_weights": {"a": 3.0},
    "terms": {"l1": 1.0, "si_sdr": 0.2},
    "ffts": [512, 2048, 256],
    "hops": [100, 240, 50],
    "windows": [500, 1200, 240],
    "threshold": 5.0,
    "limit": 0.5,
}
COMPLEX = {"complex_masks": True}
DEEP = {"layers": 2}
BY_EMBEDDINGS = {"separates_by": "embeddings"}
# for some models: what must be set for the option to matter at all, and then another value
WITH: dict[tuple[str, str], tuple[dict, dict]] = {
    **{(model, "dropout"): (DEEP, {"dropout": 0.5}) for model in MODELS if "layers" in MODELS[model]},
    **{
        (model, "complex_masks"): ({"activation": "tanh"}, COMPLEX)
        for model in ("blstm", "lstm", "bgru", "gru", "dnn", "unet")
    },
    **{(model, "groups"): ({"normalisation": "group"}, {"groups": 4}) for model in shipped("model")},
    ("chimera", "membership"): (BY_EMBEDDINGS, {"membership": "softmax"}),
    ("chimera", "level"): (BY_EMBEDDINGS, {"level": -3.0}),
    ("chimera", "starts"): (BY_EMBEDDINGS, {"starts": 1}),
    ("unet", "kernel"): ({}, {"kernel": 3}),
    ("unet", "stride"): ({}, {"stride": 1}),
    ("unet", "floor"): ({"representation": "db"}, {"floor": -5.0}),
    ("open_unmix", "floor"): ({"representation": "db"}, {"floor": -5.0}),
    ("open_unmix", "layers"): ({}, DEEP),
    ("conv_tasnet", "causal"): ({"norm": "batch"}, {"causal": True}),
    ("tasnet", "filters"): ({}, {"filters": 9}),
    ("conv_tasnet", "filters"): ({}, {"filters": 9}),
    ("dprnn", "filters"): ({}, {"filters": 9}),
    ("dprnn", "chunk"): ({}, {"chunk": 20}),
    ("wave_unet", "filters"): ({}, {"filters": 5}),
    ("wave_unet", "upsampling"): ({}, {"upsampling": "learned"}),
    ("hdemucs", "context"): ({}, {"context": 2}),
    ("hdemucs", "depth"): ({}, {"depth": 5}),
    ("hdemucs", "norm_starts"): ({}, {"norm_starts": 1}),
    ("hdemucs", "norm_groups"): ({"norm_starts": 1}, {"norm_groups": 2}),
    ("hdemucs", "dconv_attn"): ({}, {"dconv_attn": 1}),
    ("hdemucs", "dconv_lstm"): ({}, {"dconv_lstm": 1}),
}
WITH_LOSS: dict[tuple[str, str], tuple[dict, dict]] = {
    **{(loss, "level"): ({"weights": "level"}, {"level": -3.0}) for loss in ("dc", "dc_weighted", "dc_whitened")},
    **{(f"{loss}mse", "distance"): ({}, {"distance": "l1"}) for loss in ("", "msa_", "psa_", "tpsa_", "waveform_")},
    ("dc_whitened", "objective"): ({}, {"objective": "affinity"}),
    ("chimera", "terms"): ({}, {"terms": {"dc": 1.0, "tpsa": 1.0}}),
    ("multi_resolution_stft", "ffts"): ({}, {"ffts": [2048, 2048, 512]}),
}


def options(group: str) -> list[tuple[str, str]]:
    specs = sorted(shipped(group).items())
    return [(name, key) for name, spec in specs for key in spec if key not in ("_target_", "_partial_", "defaults")]


def another(key: str, value: object) -> object:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, (int, float)), f"give {key} another value in OTHER"
    return value + 1 if isinstance(value, int) else value * 1.5


def outcome(model: str, changed: dict) -> list[torch.Tensor]:
    """Shapes of the weights, the output of the network in training, and its estimates."""
    torch.manual_seed(0)
    separator = build_separator(config_of(model, True, changed))
    batch = batch_of(separator.stft)
    shapes = torch.tensor([size for p in separator.state_dict().values() for size in (*p.shape, -1)])
    torch.manual_seed(1)
    heads = separator.train().separate(batch).heads
    with torch.no_grad():
        estimates = separator.eval().separate(batch).estimates
    return [shapes, *heads.values(), estimates]


@pytest.mark.parametrize(("model", "key"), options("model"))
def test_every_option_of_a_model_changes_its_output(model, key):
    value = {**shipped("model")[model], **MODELS[model]}[key]
    base, changed = WITH.get((model, key)) or ({}, {key: another(key, value)})
    before, after = outcome(model, base), outcome(model, {**base, **changed})
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=False)]
    assert len(before) != len(after) or not all(same)


@pytest.mark.parametrize(("loss", "key"), options("loss"))
def test_every_option_of_a_loss_changes_its_value(loss, key):
    model = {"dc": "deep_clustering", "attractor": "attractor", "chimera": "chimera"}.get(loss.split("_")[0], "blstm")
    base, other = WITH_LOSS.get((loss, key)) or ({}, {key: another(key, section("loss", loss)[key])})
    values = []
    outputs = 4 if loss == "mixit" else None
    for changed in ({}, other):
        torch.manual_seed(0)
        defaults = shipped("loss")[loss].get("defaults", [{"": "tpsa"}])
        spec = {**section("loss", loss), **base, **changed}
        target = section("target", next(iter(defaults[0].values())))
        config = config_of(model, outputs is not None, loss=spec, target=target, outputs=outputs)
        separator = build_separator(config)
        criterion = build_loss(config, separator)
        batch = criterion.prepare(batch_of(separator.stft))
        values.append(criterion(separator.separate(batch), batch)[0].item())
    assert values[0] != values[1]


@pytest.mark.parametrize(("target", "key"), options("target"))
def test_every_option_of_a_target_changes_it(target, key):
    config = config_of("blstm", loss=section("loss", "l1"), target=section("target", target))
    separator = build_separator(config)
    batch = batch_of(separator.stft)
    separation = separator.separate(batch)
    values = []
    for spec in (config["target"], {**config["target"], key: OTHER[key]}):
        values.append(build_loss({**config, "target": spec}, separator)(separation, batch)[0].item())
    assert values[0] != values[1]


CONTEXT = (
    "sources",
    "channels",
    "bins",
    "sample_rate",
    "interchangeable",
    "target",
    "build_term",
)  # filled in, not configured
PRESETS = {("lstm", "bidirectional"), ("gru", "bidirectional"), ("lstm", "units"), ("gru", "units")}
PRESETS |= {("gru", "recurrent"), ("bgru", "recurrent"), ("attractor", "membership"), ("deep_clustering", "membership")}
PRESETS |= {("attractor", key) for key in ("dimensions", "layers")}


@pytest.mark.parametrize("group", ["model", "loss"])
def test_a_configuration_states_every_option_with_its_default(group):
    for name, spec in shipped(group).items():
        module, _, attribute = spec["_target_"].rpartition(".")
        parameters = inspect.signature(getattr(import_module(module), attribute)).parameters
        stated = {key: value for key, value in spec.items() if key not in ("_target_", "defaults")}
        assert set(stated) == set(parameters) - set(CONTEXT), name
        fixed = LOSSES[name][1] if name in LOSSES else {"terms": None}
        for key, value in stated.items():
            default = parameters[key].default
            if (name, key) not in PRESETS and key not in fixed:
                assert value == (list(default) if isinstance(default, tuple) else default), (name, key)


NAMES = [
    ("blstm", {"recurrent": "LSTM"}, "unknown recurrent type LSTM; choose from lstm, gru, rnn"),
    ("blstm", {"activation": "sigmoidal"}, "unknown activation sigmoidal; choose from sigmoid, softmax, tanh, relu"),
    ("blstm", {"activation": "relu", "complex_masks": True}, "activation=relu keeps complex masks from being negative"),
    ("blstm", {"representation": "log"}, "unknown representation log; choose from linear, db, power"),
    ("blstm", {"normalisation": "batchnorm"}, "unknown normalisation batchnorm; choose from batch, instance, group"),
    ("blstm", {"mels": 200}, "mels=200 must lie between 1 and the number of bins, 33"),
    ("blstm", {"mels": 33}, "mels=33: some bands hold none of the 33 bins"),
    ("blstm", {"mels": 0}, "mels=0"),
    ("blstm", {"layers": 0}, "layers=0 must be at least 1"),
    ("blstm", {"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ("deep_clustering", {"membership": "fuzzy"}, "unknown membership fuzzy; choose from hard, softmax, sigmoid"),
    ("attractor", {"membership": "hard"}, "unknown membership hard; choose from softmax, sigmoid"),
    ("chimera", {"level": 3.0}, "level=3.0 must be below 0 dB"),
    ("chimera", {"separates_by": "heads"}, "unknown head heads; choose from masks, embeddings"),
    ("unet", {"patch": 6}, "patch=6 must be a multiple of stride.levels = 4 frames"),
    ("unet", {"kernel": 4}, "and kernel=4 must be odd"),
    ("unet", {"filters": [2] * 7}, "7 levels of stride 2 need 128 bins and the STFT has 33"),
    ("unet", {"downsampling": "min"}, "unknown downsampling min; choose from stride, max, average"),
    ("open_unmix", {"hidden": 7}, "hidden=7 must be even"),
    ("open_unmix", {"bandwidth": -1.0}, "bandwidth=-1.0 must be above 0 Hz"),
    ("unet", {"filters": 5}, "model.filters=5 must be a list of integers"),
    ("unet", {"filters": ["a"]}, "must be a list of integers"),
]
LOSS_NAMES = [
    ("sum", {"terms": ["tpsa"]}, r"loss.terms=\[tpsa\] must be a section of keys with values"),
    ("l1", {"source_weights": [1, 2]}, r"loss.source_weights=\[1,2\] must be names with numbers"),
    ("l1", {"source_weights": {"a": "heavy"}}, "must be names with numbers"),
    ("multi_resolution_stft", {"ffts": 1024}, "loss.ffts=1024 must be a list of integers"),
    ("multi_resolution_stft", {"ffts": [64]}, "must be equally many"),
    ("multi_resolution_stft", {"hops": [700, 240, 50]}, "hop=700, window=600 must satisfy 1 <= hop <= window <= fft"),
    ("si_sdr", {"zero_mean": "yes"}, "loss.zero_mean=yes must be true or false"),
    ("dc", {"level": 0.0}, "level=0.0 must be below 0 dB"),
]


@pytest.mark.parametrize(("loss", "options", "message"), LOSS_NAMES)
def test_a_loss_refuses_invalid_options_with_the_way_out(loss, options, message):
    model = "deep_clustering" if loss == "dc" else "blstm"
    target = next(iter(shipped("loss")[loss].get("defaults", [{"": "tpsa"}])[0].values()))
    config = config_of(model, loss={**section("loss", loss), **options}, target=section("target", target))
    with pytest.raises(UsageError, match=message):
        build_loss(config, build_separator(config))


def test_a_limit_below_zero_is_refused():
    config = config_of("blstm", loss=section("loss", "l1"), target={**section("target", "iam"), "limit": -1.0})
    with pytest.raises(UsageError, match="target: limit=-1.0 must be above 0"):
        build_loss(config, build_separator(config))


@pytest.mark.parametrize(("model", "options", "message"), NAMES)
def test_unknown_names_and_impossible_sizes_are_refused_with_the_way_out(model, options, message):
    with pytest.raises(UsageError, match=message):
        build_separator(config_of(model, options=options))


def test_the_stft_is_small_enough_for_the_sizes_above():
    assert STFT["n_fft"] // 2 + 1 == 33
