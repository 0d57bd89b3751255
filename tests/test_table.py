"""The table model x target x loss: every cell trains, or is refused with a sentence that names what works."""

import re
from copy import deepcopy
from functools import cache

import pytest
import torch

from separate.build import build_loss, build_separator
from separate.config import shipped
from separate.errors import UsageError
from separate.losses import LOSSES
from separate.targets import TARGETS
from tests.tiny import batch_of, config_of, section

OF_WAVEFORMS = ("tasnet", "conv_tasnet", "dprnn", "wave_unet", "wavenet", "demucs", "hdemucs")
REFUSED = r"works with (target|loss)=\w+"


@cache
def separator_of(model: str, interchangeable: bool = False, **options):
    return build_separator(config_of(model, interchangeable, options))


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
    separator = separator_of(model, interchangeable)
    trained = 0
    for target in TARGETS:
        config = config_of(model, interchangeable, loss=section("loss", loss), target=section("target", target))
        try:
            criterion = build_loss(config, separator)
        except UsageError as refusal:
            assert re.search(REFUSED, str(refusal)), refusal
            continue
        trained += 1
        if loss in ("l1", "mse", "sum") or trained == 1:  # the shorthands are l1 and mse with another target
            values = losses_of_training(separator, criterion)
            assert values[-1] < values[0], target
    assert trained == len(cells(model, loss)), cells(model, loss)


def cells(model: str, loss: str) -> list[str]:
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
    if loss in ("l1", "mse", "msa", "psa", "tpsa", "msa_mse", "psa_mse", "tpsa_mse", "sum"):
        return [] if model in OF_WAVEFORMS else masked
    return ["waveform"]


def test_complex_masks_train_towards_the_complex_target_and_through_waveforms():
    for model in ("blstm", "unet"):
        separator = separator_of(model, complex_masks=True, activation="none")
        for loss, target in (("l1", "cirm"), ("mse", "cirm"), ("si_sdr", "waveform")):
            config = config_of(model, loss=section("loss", loss), target=section("target", target))
            values = losses_of_training(separator, build_loss(config, separator))
            assert values[-1] < values[0]
        with pytest.raises(UsageError, match="SpectralLoss needs masks, and .* provides complex_masks.*loss=l1, mse"):
            config = config_of(model, loss=section("loss", "l1"), target=section("target", "tpsa"))
            build_loss(config, separator)


def test_a_loss_may_not_leave_untrained_what_a_model_separates_by():
    by_embeddings = separator_of("chimera", separates_by="embeddings")
    config = config_of("chimera", loss=section("loss", "dc"), target=section("target", "ibm"))
    assert build_loss(config, by_embeddings).needs == ("embeddings",)
    with pytest.raises(UsageError, match="separates by its masks.*model=attractor, chimera model.separates_by=embed"):
        build_loss(config, separator_of("chimera"))
    config = config_of("chimera", loss=section("loss", "tpsa"), target=section("target", "tpsa"))
    with pytest.raises(UsageError, match="separates by its embeddings.*loss=dc, dc_weighted, dc_whitened, attractor;"):
        build_loss(config, by_embeddings)


def test_the_losses_by_name_are_the_configurations_of_that_name():
    shipped_losses = {name for name in shipped("loss") if name not in ("sum", "chimera", "mixit")}
    assert set(LOSSES) == shipped_losses
    for name, (kind, fixed, own) in LOSSES.items():
        spec = section("loss", name)
        assert spec["_target_"] == f"separate.losses.{kind.__name__}"
        assert {key: spec[key] for key in fixed} == fixed
        defaults = {str(default) for default in shipped("loss")[name].get("defaults", [])}
        assert (own is None) == (not defaults)
        if own is not None:
            assert defaults == {str({"override /target@_global_.target": own.__name__})}
