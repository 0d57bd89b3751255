"""Every combination of model, target and loss trains, or is refused with a sentence that names working ones."""

import re
from copy import deepcopy
from functools import cache

import pytest
import torch

from separate.config import shipped
from separate.errors import UsageError
from separate.parts import build_loss, build_separator
from separate.targets import TARGETS
from tests.tiny import LOSSES, batch_of, config_of, section

OF_WAVEFORMS = ("tasnet", "conv_tasnet", "dprnn", "wave_unet", "wavenet", "demucs", "hdemucs")
REFUSED = r"works with (target|loss)=\w+|never learns which source is which; set data.interchangeable=true"


@cache
def separator_of(model: str, interchangeable: bool = False, outputs: int | None = None, **options):
    return build_separator(config_of(model, interchangeable, options, outputs=outputs))


def losses_of_training(separator, loss, steps: int = 2) -> list[float]:
    """The loss of one batch before, between and after steps of gradient descent."""
    torch.manual_seed(0)
    separator = deepcopy(separator).train()
    optimizer = torch.optim.Adam(separator.parameters(), lr=1e-3)
    batch = loss.prepare(batch_of(separator.stft))
    values = []
    for _ in range(steps + 1):
        value, _ = loss(separator.separate(batch), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("loss", sorted(shipped("loss")))
@pytest.mark.parametrize("model", sorted(shipped("model")))
@pytest.mark.parametrize("interchangeable", [False, True], ids=["named", "interchangeable"])
def test_model_target_and_loss_train_or_are_refused_with_what_works(model, loss, interchangeable):
    outputs = 4 if loss == "mixit" and interchangeable else None
    separator = separator_of(model, interchangeable, outputs)
    trained = 0
    for target in TARGETS:
        sections = {"loss": section("loss", loss), "target": section("target", target), "outputs": outputs}
        config = config_of(model, interchangeable, **sections)
        try:
            criterion = build_loss(config, separator)
        except UsageError as refusal:
            assert re.search(REFUSED, str(refusal)), refusal
            continue
        trained += 1
        if loss in ("l1", "mse", "sum") or trained == 1:  # the shorthands are l1 and mse with another target
            values = losses_of_training(separator, criterion)
            assert values[-1] < values[0], target
    assert trained == len(cells(model, loss, interchangeable))


def cells(model: str, loss: str, interchangeable: bool) -> list[str]:
    """The targets with which a model trains under a loss, written down by hand."""
    masked = ["msa", "psa", "tpsa", "ibm", "irm", "wiener", "iam", "psm"]
    embeds = model in ("deep_clustering", "attractor")
    if loss in ("dc", "dc_weighted", "dc_whitened"):  # chimera separates by its masks, which these do not train
        return ["ibm", "irm", "wiener", "iam", "psm"] if embeds else []
    if loss == "attractor":
        return ["msa", "psa", "tpsa"] if embeds else []
    if loss == "chimera":
        return list(TARGETS) if model in ("chimera", "attractor") else []  # its terms bring their targets
    if model == "deep_clustering":
        return []
    if loss == "mixit":  # it cannot tell sources by name, and attractors are made of the sources that it does without
        return ["waveform"] if interchangeable and model != "attractor" else []
    if loss in ("l1", "mse", "msa", "psa", "tpsa", "msa_mse", "psa_mse", "tpsa_mse", "sum"):
        return [] if model in OF_WAVEFORMS else masked
    return ["waveform"]


@pytest.mark.parametrize("interchangeable", [False, True], ids=["named", "interchangeable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", sorted(set(shipped("model")) - {"blstm", "lstm", "open_unmix", "tasnet", "dprnn"}))
def test_every_model_trains_a_step_in_half_precision(model, dtype, interchangeable):
    """Under its own loss; GRUs replace LSTMs on the CPU, because oneDNN has no LSTM in half precision."""
    options = {"recurrent": "gru"} if "recurrent" in shipped("model")[model] else {}
    options |= {"lstm_layers": 0} if model == "demucs" else {"dconv_lstm": 9} if model == "hdemucs" else {}
    separator = deepcopy(separator_of(model, interchangeable, None, **options)).train()
    own = next((next(iter(default.values())) for default in shipped("model")[model].get("defaults", [])), "tpsa")
    targets = shipped("loss")[own].get("defaults", [{"": "tpsa"}])
    target = section("target", next(iter(targets[0].values())))
    loss = build_loss(config_of(model, interchangeable, loss=section("loss", own), target=target), separator)
    batch = batch_of(separator.stft)
    with torch.autocast("cpu", dtype):
        value, _ = loss(separator.separate(batch), batch)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in separator.parameters())
    with torch.inference_mode():
        assert separator.eval().separate(batch).estimates.isfinite().all()


def test_complex_masks_train_towards_the_complex_target_and_through_waveforms():
    for model in ("blstm", "unet"):
        separator = separator_of(model, complex_masks=True, activation="none")
        for loss, target in (("l1", "cirm"), ("mse", "cirm"), ("si_sdr", "waveform")):
            config = config_of(model, loss=section("loss", loss), target=section("target", target))
            values = losses_of_training(separator, build_loss(config, separator))
            assert values[-1] < values[0]
        with pytest.raises(
            UsageError, match="SpectralLoss needs masks, and .* provides complex_masks.*loss=l1, log_mse, mixit, mse"
        ):
            config = config_of(model, loss=section("loss", "l1"), target=section("target", "tpsa"))
            build_loss(config, separator)


def test_a_loss_must_train_the_head_by_which_a_model_separates():
    by_embeddings = separator_of("chimera", separates_by="embeddings")
    config = config_of("chimera", loss=section("loss", "dc"), target=section("target", "ibm"))
    assert build_loss(config, by_embeddings).needs == ("embeddings",)
    both = config_of("chimera", loss=section("loss", "chimera"), target=section("target", "tpsa"))
    separator = deepcopy(by_embeddings).train()
    build_loss(both, by_embeddings)(separator.separate(batch_of(separator.stft)), batch_of(separator.stft))[
        0
    ].backward()
    assert all(p.grad is not None for p in separator.parameters())  # of both heads
    with pytest.raises(UsageError, match="separates by its masks.*model=attractor, chimera model.separates_by=embed"):
        build_loss(config, separator_of("chimera"))
    config = config_of("chimera", loss=section("loss", "tpsa"), target=section("target", "tpsa"))
    with pytest.raises(
        UsageError, match="separates by its embeddings.*loss=attractor, chimera, dc, dc_weighted, dc_whitened, sum;"
    ):
        build_loss(config, by_embeddings)


@pytest.mark.parametrize("name", LOSSES)
def test_a_term_of_a_sum_is_the_loss_of_that_name(name):
    model = {"dc": "deep_clustering", "attractor": "attractor"}.get(name.split("_")[0], "blstm")
    separator = separator_of(model)
    own = LOSSES[name][2]
    target = section("target", own.__name__ if own else "irm")
    alone, within = (
        build_loss(config_of(model, loss=spec, target=other), separator)
        for spec, other in (
            (section("loss", name), target),
            ({**section("loss", "sum"), "terms": {name: 0.5}}, section("target", "psm") if own else target),
        )
    )
    batch = batch_of(separator.stft)
    separation = deepcopy(separator).train().separate(batch)
    value, parts = within(separation, batch)
    assert parts[name].item() == alone(separation, batch)[0].item() == pytest.approx(2 * value.item())


@pytest.mark.parametrize("name", ["mixit", "chimera"])
def test_a_sum_and_a_loss_of_mixtures_cannot_be_terms(name):
    config = config_of("blstm", loss={**section("loss", "sum"), "terms": {name: 1}}, target=section("target", "tpsa"))
    with pytest.raises(UsageError, match=f"terms.{name}: .* cannot be a term of a sum; name a loss of one term"):
        build_loss(config, separator_of("blstm"))
