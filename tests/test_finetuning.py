"""Fine-tuning: weights from another run, frozen parameters, and adapters that are merged when they are saved."""

import json
import logging
import shutil
from copy import deepcopy

import pytest
import torch
from torch import nn

from separate import checkpoint
from separate.cli import evaluate, infer, train
from separate.config import shipped
from separate.errors import UsageError
from separate.models.representation import observers
from separate.parts import build_separator
from separate.training.finetuning.lora import adapt, adaptable, adapter_weights, load_weights, merged_weights
from separate.training.finetuning.preparation import fine_tune, matching, train_mode
from separate.training.resume import checkpoint_to_resume
from separate.training.saving import save
from separate.training.setup import measure, prepare
from separate.training.step import train_step
from tests.conftest import TINY_TOY, tone, write
from tests.test_trainer import CONFIG, first_batch
from tests.tiny import MODELS, batch_of, config_of

LORA = {"rank": 2, "alpha": 4.0, "layers": ["*"]}
WHITEN = {**CONFIG["model"], "normalisation": "whiten"}
STILL = ["optimizer.lr=0.0", "model.normalisation=whiten"]  # no step changes weights or statistics
LOGGED = ["trainer.epochs=2", "trainer.precision=fp32"]


def start(folder, freeze=None, **sections):
    config = {**CONFIG, **sections}
    return prepare({**config, "trainer": {**config["trainer"], "freeze": freeze}}, folder)


def saved_run(folder, **sections):
    """The path of a checkpoint of a network with random weights and measured statistics."""
    state, training = start(folder, **sections)
    measure(state, training)
    contents = {"config": {**CONFIG, **sections}, "licence": None, **state.capture()}
    path = folder / "run" / "checkpoints" / "best.ckpt"
    checkpoint.save(path, contents)
    return str(path.parent.parent)


def named(state):
    return {name: value.detach().clone() for name, value in state.separator.network.named_parameters()}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------- init


def test_the_first_validation_after_init_is_that_of_the_other_run(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, *LOGGED, STILL[1], "run=old", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(train, *TINY_TOY, *LOGGED, *STILL, "run=new", "init=old", "seed=0", cwd=tmp_path)
    assert code == 0, err
    best = checkpoint.read(tmp_path / "old" / "checkpoints" / "best.ckpt")
    assert lines(tmp_path / "new")[0]["valid/loss"] == best["scores"]["valid/loss"]
    assert "init=old" in (tmp_path / "new" / "train.log").read_text()
    shutil.rmtree(tmp_path / "old")  # the new run stands on its own
    code, _, err = call(train, "run=new", "resume=true", "trainer.epochs=3", cwd=tmp_path)
    assert code == 0, err
    assert checkpoint.read(tmp_path / "new" / "checkpoints" / "last.ckpt")["config"]["init"] == "old"
    code, _, err = call(train, "run=new", "resume=true", "init=other", cwd=tmp_path)
    assert code == 2
    assert "init=other is not what this run was started with (old)" in err


def test_statistics_of_the_training_set_are_loaded_and_not_measured_again(tmp_path):
    old = saved_run(tmp_path, model=WHITEN)
    before = checkpoint.read(checkpoint.find(old))["model"]
    other_data = {**CONFIG["data"], "tracks": {"train": 3, "valid": 1}, "excerpt": 0.25}
    state, training = start(tmp_path, model=WHITEN, init=old, data=other_data)
    measure(state, training)
    after = state.separator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fresh, training = start(tmp_path, model=WHITEN, data=other_data)
    measure(fresh, training)
    name = "network.body.representation.normalise.shift"
    assert not torch.equal(fresh.separator.state_dict()[name], before[name])
    bins = {**CONFIG["stft"], "n_fft": 256}  # other bins: the statistics are new, and measured
    state, _ = start(tmp_path, model=WHITEN, init=old, stft=bins)
    assert len(observers(state.separator.network)) == 1


def test_a_head_for_another_number_of_sources_is_new_and_reported(tmp_path, caplog):
    old = saved_run(tmp_path)
    before = checkpoint.read(checkpoint.find(old))["model"]
    three = {**CONFIG["data"], "sources": ["voice", "drums", "chords"]}
    caplog.clear()
    state, _ = start(tmp_path, init=old, data=three)
    after = state.separator.state_dict()
    shared = [name for name in before if "head" not in name]
    assert shared
    assert all(torch.equal(before[name], after[name]) for name in shared)
    report = next(record for record in caplog.records if "init=" in record.getMessage())
    assert report.levelno == logging.WARNING
    assert "of another shape, so initialised randomly: network.head.linear.weight 195x32, was 130x32" in caplog.text
    assert "data.sources=[voice,drums,chords] (was [voice,drums])" in caplog.text


def test_weights_that_only_one_side_has_are_reported(tmp_path, caplog):
    old = saved_run(tmp_path)
    start(tmp_path, init=old, model={**CONFIG["model"], "layers": 3})
    assert "not in the checkpoint, so initialised randomly: network.body.recurrent.layers.weight_ih_l2" in caplog.text
    assert "model.layers=3 (was 2)" in caplog.text
    caplog.clear()
    start(tmp_path, init=old, model={**CONFIG["model"], "layers": 1})
    assert "only in the checkpoint, so left out: network.body.recurrent.layers.weight_ih_l1; " in caplog.text
    assert "; 4 more" in caplog.text


def test_checkpoints_that_do_not_fit_are_refused_with_the_way_out(tmp_path):
    old = saved_run(tmp_path)
    unet = {"_target_": "separate.models.unet.UNet", "filters": [4, 8], "patch": 8}
    rate = {**CONFIG["data"], "sample_rate": 16000}
    small = {**CONFIG["model"], "units": 8, "normalisation": "none"}
    for message, sections in {
        r"is a separate.models.recurrent.MaskInference and this run trains a separate.models.unet.UNet; choose "
        r"model=bgru or model=blstm": {"model": unet},
        "was trained at 8000 Hz and this run has data.sample_rate=16000": {"data": rate},
        r"no weight of this checkpoint fits .*differ in stft.n_fft=256 \(was 128\); model.units=8 \(was 16\)": {
            "model": small,
            "stft": {**CONFIG["stft"], "n_fft": 256},
        },
    }.items():
        with pytest.raises(UsageError, match=message):
            start(tmp_path, init=old, **sections)
    with pytest.raises(UsageError, match=r"init: .*nothing.ckpt does not exist; give a run's folder or a checkpoint"):
        start(tmp_path, init=str(tmp_path / "nothing.ckpt"))
    (tmp_path / "wrong.ckpt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"init: .*wrong.ckpt is not a checkpoint"):
        start(tmp_path, init=str(tmp_path / "wrong.ckpt"))


# ------------------------------------------------------------------------------------------------------- freezing


def test_only_the_parameters_that_are_not_frozen_train(tmp_path):
    momentum = {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}
    state, training = start(tmp_path, freeze=["body.*"], optimizer=momentum)
    train_mode(state.separator)
    before = deepcopy(state.separator.state_dict())
    for _ in range(2):
        train_step(state, training, first_batch(training))
    changed = {name for name, value in state.separator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"network.head.linear.weight", "network.head.linear.bias"}  # not the statistics either
    gradients = {name: p.grad for name, p in state.separator.network.named_parameters()}
    assert all((gradients[name] is None) == name.startswith("body.") for name in gradients)
    assert len(state.optimizer.state) == sum(len(group["params"]) for group in state.optimizer.param_groups) == 2


def test_a_frozen_batch_normalisation_keeps_its_statistics_and_dropout_stays_active(tmp_path):
    def modes(freeze):
        state, _ = start(tmp_path, freeze=freeze)
        train_mode(state.separator)
        network = state.separator.network
        return network.body.representation.normalise.training, network.body.recurrent.layers.training

    assert modes(["body.*"]) == (False, True)
    assert modes(["body.representation.*"]) == (False, True)
    assert modes(["body.representation.normalise.weight"]) == (True, True)
    assert modes(None) == (True, True)


@pytest.mark.parametrize("model", shipped("model"))
def test_gradients_of_the_others_are_those_without_freezing(model):
    """In networks with hand-written gradients too."""
    gradients = []
    for part in (0, 2):
        torch.manual_seed(0)
        separator = build_separator(config_of(model, True, {}))
        batch = batch_of(separator.stft)
        parameters = dict(separator.network.named_parameters())
        frozen = list(parameters)[1::2] if part else []
        for name in frozen:
            parameters[name].requires_grad_(False)
        heads = separator.eval().separate(batch).heads
        sum(head.abs().square().sum() for head in heads.values()).backward()
        gradients.append({name: parameter.grad for name, parameter in parameters.items()})
    assert frozen
    for name, gradient in gradients[1].items():
        assert gradient is None if name in frozen else True
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[0][name])


def test_patterns_that_match_nothing_and_freezing_everything_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"trainer.freeze: head.liner.\* matches nothing; the nearest are head.linear"):
        start(tmp_path, freeze=["body.*", "head.liner.*"])
    with pytest.raises(UsageError, match=r"lora.layers: heads matches nothing; the nearest are head.linear"):
        start(tmp_path, lora={**LORA, "layers": ["heads"]})
    with pytest.raises(UsageError, match="trainer.freeze freezes every parameter, so there is nothing to train"):
        start(tmp_path, freeze=["*"])
    with pytest.raises(UsageError, match=r"lora.rank=2 has no layers to adapt; set lora.layers="):
        start(tmp_path, lora={**LORA, "layers": []})
    assert matching(["a.b", "a.c", "b"], ["b", "a.?"], "key") == {"b": ["b"], "a.?": ["a.b", "a.c"]}


def test_new_weights_cannot_be_frozen_at_random_values(tmp_path):
    old = saved_run(tmp_path)
    three = {**CONFIG["data"], "sources": ["voice", "drums", "chords"]}
    for options, way_out in (
        ({"freeze": ["head.*"]}, r"with trainer.freeze=\[body.\*\]$"),
        ({"lora": LORA}, r"with trainer.freeze=\[body.\*\] lora.layers=\[body.\*\]$"),
    ):
        with pytest.raises(UsageError, match=rf"head.linear.bias is new: .*{way_out}"):
            start(tmp_path, init=old, data=three, **options)
    state, _ = start(tmp_path, freeze=["body.*"], init=old, data=three, lora={**LORA, "layers": ["body.*"]})
    assert state.separator.network.head.linear.weight.requires_grad


# ------------------------------------------------------------------------------------------------------- adapters


def scrambled(separator):
    """Adapters with other values than at the start."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in separator.network.named_parameters():
        if name.endswith(".b"):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("model", shipped("model"))
def test_adapters_start_as_the_unchanged_network_and_are_merged_into_one_that_computes_the_same(model):
    torch.manual_seed(0)
    config = config_of(model, True, {})
    separator = build_separator(config).eval()
    batch = batch_of(separator.stft)
    plain, shapes = separator.separate(batch).heads, {k: v.shape for k, v in separator.state_dict().items()}
    layers = adaptable(separator.network)
    if not layers:
        assert model in ("wave_unet", "unet")
        return
    adapt(separator.network, layers, 2, 4.0)
    heads = separator.separate(batch).heads
    assert all(torch.equal(heads[name], plain[name]) for name in plain)
    scrambled(separator)
    heads = separator.separate(batch).heads
    assert not all(torch.equal(heads[name], plain[name]) for name in plain)
    merged = merged_weights(separator)
    assert {name: value.shape for name, value in merged.items()} == shapes
    again = build_separator(config).eval()
    again.load_state_dict(merged)
    for name, head in again.separate(batch).heads.items():
        torch.testing.assert_close(head, heads[name], rtol=1e-5, atol=1e-5)
    sum(head.abs().square().sum() for head in heads.values()).backward()
    adapted = [p for name, p in separator.network.named_parameters() if name.endswith((".a", ".b"))]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapted)


def test_adapted_weights_round_trip_exactly():
    torch.manual_seed(0)
    one, two = (build_separator(config_of("blstm")) for _ in range(2))
    for separator in (one, two):
        adapt(separator.network, adaptable(separator.network), 2, 4.0)
    scrambled(one)
    load_weights(two, merged_weights(one), adapter_weights(one))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*parametrizations"):
        load_weights(two, merged_weights(one), {})


def test_rank_alpha_and_layers_change_the_adapters(tmp_path):
    def sizes(**options):
        state, _ = start(tmp_path, lora={**LORA, **options})
        return {n: p.numel() for n, p in state.separator.network.named_parameters() if p.requires_grad}

    assert sum(sizes(rank=4).values()) == 2 * sum(sizes().values())
    assert set(sizes(layers=["head.*"])) == {f"head.linear.parametrizations.weight.0.{n}" for n in "ab"}
    outputs = []
    for alpha in (4.0, 8.0):
        layer = nn.Sequential(nn.Linear(3, 5))
        torch.manual_seed(0)
        adapt(layer, ["0"], 2, alpha)
        layer[0].parametrizations.weight[0].b.data.fill_(1.0)
        outputs.append(layer[0].weight - layer[0].parametrizations.weight.original)
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


def test_adapters_freeze_all_other_parameters_unless_freeze_is_given(tmp_path):
    def trained(freeze):
        state, _ = start(tmp_path, freeze=freeze, lora={**LORA, "layers": ["head.*"]})
        names = [name for name, p in state.separator.network.named_parameters() if p.requires_grad]
        return [name for name in names if "parametrizations" not in name]

    assert trained(None) == []
    assert "head.linear.bias" in trained([])
    assert trained(["body.*"]) == ["head.linear.bias"]


def test_only_adapters_change_and_statistics_stay(tmp_path):
    state, training = start(tmp_path, lora=LORA)
    train_mode(state.separator)
    before = deepcopy(state.separator.state_dict())
    for _ in range(2):
        train_step(state, training, first_batch(training))
    changed = {name for name, value in state.separator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".parametrizations." in name and name.endswith((".a", ".b")) for name in changed)


def test_a_custom_network_keeps_its_own_parametrizations():
    layer = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2), nn.Conv1d(4, 2, 3))
    assert adaptable(layer) == ["1"]
    adapt(layer, ["1"], 1, 1.0)
    assert {"0.parametrizations.weight.original0", "1.weight"} < merged_weights(layer).keys()


# ------------------------------------------------------------------------------------------------------- runs


FROZEN = ["trainer.freeze=[body.*]", "model.dropout=0.3", "model.layers=2"]
ADAPTED = ["lora.rank=2", "lora.alpha=4", "model.dropout=0.3", "model.layers=2"]


@pytest.mark.parametrize("options", [FROZEN, ADAPTED])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(options, call, tmp_path):
    assert call(train, *TINY_TOY, *options[1:][-2:], "run=old", cwd=tmp_path)[0] == 0
    options = [*options, "init=old", "trainer.steps_per_epoch=3"]
    for folder, epochs in (("whole", 3), ("part", 2)):
        code, _, err = call(train, *TINY_TOY, *options, f"trainer.epochs={epochs}", f"run={folder}", cwd=tmp_path)
        assert code == 0, err
    code, _, err = call(train, "run=part", "resume=true", "trainer.epochs=3", cwd=tmp_path)
    assert code == 0, err
    whole, part = (checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "part"))
    old = checkpoint.read(tmp_path / "old" / "checkpoints" / "best.ckpt")["model"]
    assert all(torch.equal(value, part["model"][name]) for name, value in whole["model"].items())
    adapters = whole["training"]["adapters"]
    assert bool(adapters) == (options[0] != FROZEN[0])
    assert all(torch.equal(value, part["training"]["adapters"][name]) for name, value in adapters.items())
    assert not all(torch.equal(value, old[name]) for name, value in whole["model"].items())


def test_evaluation_and_inference_of_an_adapted_run_need_no_adapters(call, tmp_path):
    assert call(train, *TINY_TOY, "run=old", cwd=tmp_path)[0] == 0
    code, _, err = call(
        train, *TINY_TOY, *LOGGED, "optimizer.lr=0.1", "init=old", "lora.rank=2", "run=new", cwd=tmp_path
    )
    assert code == 0, err
    old, best = (checkpoint.read(tmp_path / run / "checkpoints" / "best.ckpt") for run in ("old", "new"))
    assert {n: v.shape for n, v in best["model"].items()} == {n: v.shape for n, v in old["model"].items()}
    checkpoint.restore(old).load_state_dict(best["model"])
    code, _, err = call(evaluate, "run=new", "split=valid", "device=cpu", cwd=tmp_path)
    assert code == 0, err
    write(tmp_path / "mix.wav", tone(300))
    assert call(infer, "-c", "new", "mix.wav", cwd=tmp_path)[0] == 0
    assert call(train, *TINY_TOY, "init=new/checkpoints/last.ckpt", "run=third", cwd=tmp_path)[0] == 0  # merged too


def test_a_checkpoint_older_than_adapters_resumes(call, tmp_path):
    assert call(train, *TINY_TOY, "run=r", cwd=tmp_path)[0] == 0
    path = tmp_path / "r" / "checkpoints" / "last.ckpt"
    contents = checkpoint.read(path)
    del contents["training"]["adapters"], contents["config"]["init"], contents["config"]["lora"]
    del contents["config"]["trainer"]["freeze"]
    checkpoint.save(path, contents)
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err


def test_fine_tuning_changes_nothing_unless_it_is_asked_for():
    separator = build_separator(config_of("blstm"))
    before = deepcopy(separator.state_dict())
    fine_tune(separator, {**CONFIG, "model": {}}, resumed=False)
    assert all(parameter.requires_grad for parameter in separator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in separator.state_dict().items())


def test_models_of_every_kind_can_be_adapted_in_part():
    assert {model for model in MODELS if not adaptable(build_separator(config_of(model, True, {})).network)} <= {
        "unet",
        "wave_unet",
    }


def test_an_average_of_adapted_weights_is_saved_merged_and_computes_the_same(tmp_path):
    state, training = start(tmp_path, lora=LORA, ema=0.5)
    train_mode(state.separator)
    for _ in range(3):
        train_step(state, training, first_batch(training))
    save(state, training, "best", weights="ema0.5")
    loaded = checkpoint.load(tmp_path)
    batch = batch_of(loaded.stft)
    state.separator.eval()
    raw = state.separator.separate(batch).estimates
    with state.averages.swapped("ema0.5"):
        expected = state.separator.separate(batch).estimates
    torch.testing.assert_close(loaded.separate(batch).estimates, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(raw, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(state.separator.separate(batch).estimates, raw)  # saving left the weights as they were
    path = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match=r"best.ckpt holds the average ema0.5 and not the weights that are trained"):
        checkpoint_to_resume(str(path), tmp_path / "new")
