"""Optimizers of conf/optimizer, parameter groups, and resumption with each optimizer."""

import copy
import math

import pytest
import torch
from torch import nn

from separate import checkpoint
from separate.cli import train
from separate.config import shipped
from separate.errors import UsageError
from separate.parts import build_optimizer, build_separator
from separate.training.matrices import hidden_matrices
from separate.training.optimizers import Lion, Muon
from separate.training.parameters import GroupOptions, is_weight, matching, parameter_groups, without_frozen
from separate.training.schedules import WarmupCosine, before_step
from separate.training.setup import prepare
from separate.training.step import flush, train_step
from separate.training.trainer import fit
from tests.conftest import TINY_TOY
from tests.test_trainer import CONFIG, first_batch, weights
from tests.tiny import MODELS, config_of, without_defaults

OPTIMIZERS = sorted(shipped("optimizer"))
RATES = {"lion": 0.003, "radam": 0.03, "sgd": 1.0}  # for 30 steps on one batch; 0.01 for the others


def start(folder, name, changes=(), **trainer):
    optimizer = {**without_defaults(shipped("optimizer")[name]), **dict(changes)}
    return prepare({**CONFIG, "optimizer": optimizer, "trainer": {**CONFIG["trainer"], **trainer}}, folder)


def names_of(state, select):
    """The names of the parameters in the groups for which `select` is true."""
    chosen = [one for group in state.optimizer.param_groups if select(group) for one in group["params"]]
    return {name for name, one in state.separator.network.named_parameters() if any(one is other for other in chosen)}


# training and resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_repeating_one_batch_lowers_the_loss(name, tmp_path):
    state, training = start(tmp_path, name, {"lr": RATES.get(name, 0.01)})
    batch = first_batch(training)
    losses = [train_step(state, training, batch)["loss"] for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    decay = {"weight_decay": 0.1}  # so that there are groups
    whole, training = start(tmp_path / "whole", name, decay, rates={"head.*": 0.5})
    fit(whole, training)
    part, training = start(tmp_path / "part", name, decay, rates={"head.*": 0.5}, epochs=2)
    fit(part, training)
    torch.manual_seed(99)  # another process
    resumed, training = start(tmp_path / "part", name, decay, rates={"head.*": 0.5})
    resumed.restore(checkpoint.read(tmp_path / "part" / "checkpoints" / "last.ckpt"))
    fit(resumed, training)
    assert whole.step == resumed.step == 12
    assert all(map(torch.equal, weights(whole), weights(resumed)))


@pytest.mark.parametrize("name", ["lion", "muon"])
@pytest.mark.parametrize("lags", [False, True])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(name, lags, tmp_path):
    state, training = start(tmp_path, name)
    training.lags = lags
    good, bad = first_batch(training), first_batch(training)
    bad.sources[0, 0, 0, 7] = torch.inf
    train_step(state, training, good)
    flush(state, training)
    before = copy.deepcopy((weights(state), state.optimizer.state_dict()["state"]))
    train_step(state, training, bad)
    flush(state, training)
    assert all(map(torch.equal, before[0], weights(state)))
    for place, values in before[1].items():
        for key, value in values.items():
            assert torch.equal(value, state.optimizer.state_dict()["state"][place][key])


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_the_host_does_not_wait_for_the_device(name, device, waits):
    config = {**config_of("bgru"), "optimizer": without_defaults(shipped("optimizer")[name]), "trainer": {}}
    separator = build_separator(config).to(device)
    optimizer = build_optimizer(config, separator)
    schedule = WarmupCosine(optimizer, 10)
    for count in range(3):
        for parameter in separator.parameters():
            parameter.grad = torch.ones_like(parameter)
        with waits() as waited:
            before_step(schedule, count)
            optimizer.step()
        assert count == 0 or waited == []


# updates against the papers -----------------------------------------------------------------------------------------


def quadratic(optimizer_of, steps=7, shape=(6, 4)):
    """The weights in float64 after steps with known gradients, and these gradients."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    start, optimizer = weight.detach().clone(), optimizer_of(weight)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return start, weight.detach(), gradients


def test_lion_is_algorithm_2_of_its_paper():
    rate, decay, (beta1, beta2) = 0.01, 0.3, (0.8, 0.95)
    start, found, gradients = quadratic(lambda w: Lion([w], lr=rate, betas=(beta1, beta2), weight_decay=decay))
    momentum, expected = torch.zeros_like(start), start
    for gradient in gradients:
        update = torch.sign(beta1 * momentum + (1 - beta1) * gradient)
        expected = expected - rate * (update + decay * expected)
        momentum = beta2 * momentum + (1 - beta2) * gradient
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def orthogonalised(matrix, steps=5):
    """Newton-Schulz iterations as in Jordan's text, in the dtype of the matrix."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = len(x) > len(x[0])
    x = x.T if tall else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def muon_by_hand(start, gradients, rate, decay, nesterov, scale, stacked=1):
    momentum, expected = torch.zeros_like(start), start
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = 0.95 * momentum + 0.05 * gradient if nesterov else momentum
        update = torch.cat([orthogonalised(part) for part in direction.chunk(stacked)])
        expected = expected - rate * decay * expected - rate * scale * update
    return expected


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("adjust", "scale"), [("original", math.sqrt(2)), ("match_rms_adamw", 0.2 * math.sqrt(8))])
def test_muon_is_the_update_of_its_authors(nesterov, adjust, scale):
    """torch iterates in bfloat16, the reference in float64."""
    options = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    start, found, gradients = quadratic(lambda w: Muon([w], {w: 1}, **options), shape=(8, 4))
    expected = muon_by_hand(start, gradients, 0.02, 0.1, nesterov, scale)
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


def test_muon_orthogonalises_stacked_gates_one_by_one():
    options = {"lr": 0.02, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    start, found, gradients = quadratic(lambda w: Muon([w], {w: 4}, **options), shape=(16, 4))
    apart = muon_by_hand(start, gradients, 0.02, 0.0, True, 1.0, stacked=4)
    whole = muon_by_hand(start, gradients, 0.02, 0.0, True, 2.0)
    assert (found - apart).norm() < 0.02 * (apart - start).norm()
    assert (found - whole).norm() > 0.2 * (whole - start).norm()


def test_muon_equals_torchs_muon_on_matrices_and_torchs_adamw_on_the_rest():
    _, found, _ = quadratic(lambda w: Muon([w], {w: 1}, lr=0.01))
    _, theirs, _ = quadratic(lambda w: torch.optim.Muon([w], 0.01, 0.01, adjust_lr_fn="match_rms_adamw"))
    assert torch.equal(found, theirs)
    other = nn.Parameter(torch.zeros(2, 2))
    _, found, _ = quadratic(lambda w: Muon([w], {other: 1}, lr=0.01, adamw_lr=0.002, weight_decay=0.1))
    _, theirs, _ = quadratic(lambda w: torch.optim.AdamW([w], lr=0.002, weight_decay=0.1))
    assert torch.equal(found, theirs)
    _, found, _ = quadratic(lambda w: Muon([w], {w: 1}, lr=0.01), shape=(6, 4, 1))  # a 1x1 convolution
    _, theirs, _ = quadratic(lambda w: torch.optim.Muon([w], 0.01, 0.01, adjust_lr_fn="match_rms_adamw"))
    assert torch.equal(found[..., 0], theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ns_steps": 0}, "ns_steps=0 must lie"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"adjust_lr_fn": "x"}, "x is"),
    ],
)
def test_unusable_options_of_muon_are_refused(options, message):
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=message):
        Muon([weight], {weight: 1}, **options)


# the split of Muon --------------------------------------------------------------------------------------------------

SPLIT = {  # the hidden matrices of the tiny networks: (pattern, stacked matrices)
    "blstm": {"body.recurrent.layers.weight_hh_l0*": 4},
    "gru": {"body.recurrent.layers.weight_hh_l0": 3},
    "chimera": {"body.recurrent.layers.weight_hh_l0*": 4},
    "open_unmix": {"parts.*.recurrent.layers.weight_*": 4, "parts.*.middle.weight": 1},
    "conv_tasnet": {
        "bottleneck.weight": 1, "stack.blocks.*.expand.weight": 1, "stack.blocks.*.output.weight": 1,
        "masks.linear.weight": 1,
    },
    "wavenet": {"layers.*.split.weight": 1},
    "dnn": {},
    "unet": {},
    "wave_unet": {},
}  # fmt: skip


@pytest.mark.parametrize("model", SPLIT)
def test_hidden_matrices_lie_between_first_and_last_layers(model):
    separator = build_separator(config_of(model, interchangeable=True))
    before = torch.get_rng_state()
    found = hidden_matrices(separator)
    assert torch.equal(before, torch.get_rng_state())
    names = {name: one for name, one in separator.network.named_parameters() if one in found}
    expected = {}
    for pattern, stacked in SPLIT[model].items():
        matched = matching(dict(separator.network.named_parameters()), [pattern], "test")[pattern]
        expected |= dict.fromkeys(matched, stacked)
    assert {name: found[one] for name, one in names.items()} == expected


@pytest.mark.parametrize("model", MODELS)
def test_the_split_of_every_network_leaves_vectors_to_adamw(model):
    separator = build_separator(config_of(model, interchangeable=True))
    parameters = dict(separator.network.named_parameters())
    for one in hidden_matrices(separator):
        name = next(name for name, other in parameters.items() if other is one)
        assert is_weight(separator.network, name)


def test_muon_and_adamw_share_groups_rates_and_decay(tmp_path):
    state, _ = start(tmp_path, "muon", {"lr": 0.01, "adamw_lr": 0.001, "weight_decay": 0.1}, rates={"head.*": 0.5})
    hidden = names_of(state, lambda group: group["hidden"])
    assert hidden == {
        name for name in names_of(state, lambda group: True) if "weight_hh" in name or "weight_ih_l1" in name
    }
    assert state.optimizer.param_groups[0]["lr"] == 0.01  # which is logged
    rates = {(group["hidden"], round(group["lr"], 6), group["weight_decay"]) for group in state.optimizer.param_groups}
    assert rates == {
        (True, 0.01, 0.1), (False, 0.001, 0.1), (False, 0.001, 0.0), (False, 0.0005, 0.1), (False, 0.0005, 0.0)
    }  # fmt: skip


def test_muon_is_refused_for_a_network_without_hidden_matrices():
    config = {**config_of("unet"), "optimizer": shipped("optimizer")["muon"], "trainer": {}}
    with pytest.raises(UsageError, match=r"no hidden weight matrices .* use optimizer=adamw"):
        build_optimizer(config, build_separator(config))


# parameter groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_weight_decay_leaves_norms_and_biases_alone(name, tmp_path):
    state, _ = start(tmp_path, name, {"weight_decay": 0.5})
    before = copy.deepcopy(dict(state.separator.network.named_parameters()))
    for parameter in state.separator.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for key, now in state.separator.network.named_parameters():
        decays = "weight" in key and "normal" not in key
        expected = before[key] * (1 - 0.5 * state.optimizer.param_groups[0]["lr"]) if decays else before[key]
        torch.testing.assert_close(now, expected, rtol=1e-6, atol=0)
    assert {key for key in before if "normal" in key or "bias" in key}


def test_decay_all_is_one_group_and_so_is_no_decay(tmp_path):
    for changes, decay in (({"weight_decay": 0.5}, "all"), ({"weight_decay": 0.0}, "weights")):
        state, _ = start(tmp_path, "adamw", changes, decay=decay)
        assert len(state.optimizer.param_groups) == 1
        assert state.optimizer.param_groups[0]["params"] == list(state.separator.parameters())
    assert len(start(tmp_path, "adamw", {"weight_decay": 0.5})[0].optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("model", "weightless"), [("wave_unet", "up.0.1.logit"), ("conv_tasnet", "*norm*"), ("hdemucs", "*norm*")]
)
def test_learned_weights_of_vectors_do_not_decay(model, weightless):
    network = build_separator(
        config_of(model, True, {"upsampling": "learned"} if model == "wave_unet" else None)
    ).network
    names = [name for name, _ in network.named_parameters()]
    weights = {name for name in names if is_weight(network, name)}
    vectors = {name for name in names if "bias" in name or "logit" in name or "norm" in name}
    assert vectors and not vectors & weights
    assert all(one.ndim > 1 for name, one in network.named_parameters() if name in weights)


def test_a_rate_multiplies_the_update_of_sgd(tmp_path):
    moved = []
    for rates in (None, {"head.*": 0.25, "*.bias": 2.0}):
        state, training = start(tmp_path, "sgd", {"momentum": 0.0, "lr": 100.0}, rates=rates)
        before = copy.deepcopy(dict(state.separator.network.named_parameters()))
        rounded = {name: value.double() for name, value in before.items()}
        train_step(state, training, first_batch(training))
        moved.append({name: one.double() - rounded[name] for name, one in state.separator.network.named_parameters()})
    factors = {"head.linear.weight": 0.25, "head.linear.bias": 0.5, "body.representation.normalise.bias": 2.0}
    for name, plain in moved[0].items():
        torch.testing.assert_close(moved[1][name], factors.get(name, 1.0) * plain, rtol=1e-4, atol=1e-7)
        assert plain.abs().max() > 1e-5


def test_a_rate_for_no_parameter_names_the_nearest(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, "trainer.rates={haed.linear.*: 0.1}", cwd=tmp_path)
    assert code == 2
    assert "trainer.rates: haed.linear.* matches nothing; the nearest are head.linear." in err
    code, _, err = call(train, *TINY_TOY, "trainer.rates={head.*: -0.5}", cwd=tmp_path)
    assert code == 2
    assert "trainer.rates.head.*=-0.5 must be above 0" in err


def test_rates_need_an_optimizer_with_a_rate():
    with pytest.raises(UsageError, match="optimizer.lr, which is no number here"):
        parameter_groups(nn.Linear(2, 2), GroupOptions(None, None, rates={"weight": 0.5}))


def test_parameters_that_are_not_trained_are_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    assert parameter_groups(network, GroupOptions(0.1, 0.0)) == [network[1].weight, network[1].bias]
    network.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter of the network is trained"):
        parameter_groups(network, GroupOptions(0.1, 0.0))


# runs from before ---------------------------------------------------------------------------------------------------


def test_the_state_of_an_optimizer_that_also_had_frozen_parameters_is_resumed():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].requires_grad_(False)
    old = torch.optim.Adam(network.parameters(), lr=0.1)
    new = torch.optim.Adam(parameter_groups(network, GroupOptions(0.1, 0.0)), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    old.step()
    new.load_state_dict(without_frozen(old.state_dict(), network))
    for parameter in (*network[0].parameters(), *network[2].parameters()):
        assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
    assert without_frozen(new.state_dict(), network) == new.state_dict()


def test_an_older_run_keeps_its_one_group_and_is_resumed_bit_for_bit(call, tmp_path):
    common = [*TINY_TOY, "optimizer=adamw", "optimizer.weight_decay=0.3", "trainer.steps_per_epoch=3"]
    experiment = tmp_path / "mine" / "experiment" / "old.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\nseed: 3\n")
    common = ["--config-dir", str(tmp_path / "mine"), *common, "experiment=old"]
    for folder, epochs in (("whole", 2), ("part", 1)):
        code, _, err = call(
            train, *common, f"run={folder}", f"trainer.epochs={epochs}", "trainer.decay=all", cwd=tmp_path
        )
        assert code == 0, err
    path = tmp_path / "part" / "checkpoints" / "last.ckpt"
    contents = checkpoint.read(path)
    for key in ("decay", "rates", "clip_value", "max_hours"):  # younger keys
        del contents["config"]["trainer"][key]
    checkpoint.save(path, contents)
    code, _, err = call(
        train, *common, "run=part", "resume=true", "trainer.epochs=2", "trainer.decay=weights", cwd=tmp_path
    )
    assert code == 2
    assert "trainer.decay=weights is not what this run was started with (all)" in err
    code, _, err = call(train, *common, "run=part", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    found, expected = (checkpoint.read(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("part", "whole"))
    assert all(map(torch.equal, found["model"].values(), expected["model"].values()))
    assert len(found["training"]["optimizer"]["param_groups"]) == 1


def test_a_run_with_rates_is_resumed_and_keeps_them(call, tmp_path):
    common = [*TINY_TOY, "trainer.rates={head.*: 0.5, body.*: 2.0}", "run=r"]
    code, _, err = call(train, *common, "trainer.epochs=1", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    contents = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")
    assert contents["config"]["trainer"]["rates"] == {"head.*": 0.5, "body.*": 2.0}
    assert contents["training"]["epoch"] == 2
    code, _, err = call(train, "run=r", "resume=true", "trainer.rates={head.*: 0.1}", cwd=tmp_path)
    assert code == 2
    assert "trainer.rates" in err and "not what this run was started with" in err
