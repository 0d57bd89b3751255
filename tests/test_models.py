"""Networks: shapes, causality, and that every option changes the result."""

import pytest
import torch

from separate.models.layers import ACTIVATIONS, decibels
from separate.models.recurrent import MaskInference

SMALL = {"sources": 2, "channels": 2, "bins": 9, "units": 8, "layers": 2}


def spectrogram(frames: int = 12) -> torch.Tensor:
    return torch.randn(3, 2, 9, frames, dtype=torch.complex64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masks_have_the_shape_of_the_sources(activation):
    masks = MaskInference(**SMALL, activation=activation)(spectrogram())["masks"]
    assert masks.shape == (3, 2, 2, 9, 12)
    if activation == "sigmoid":
        assert masks.min() >= 0
        assert masks.max() <= 1
    if activation == "softmax":
        torch.testing.assert_close(masks.sum(1), torch.ones(3, 2, 9, 12))


def test_a_causal_network_does_not_see_the_future():
    torch.manual_seed(0)
    x = spectrogram()
    changed = x.clone()
    changed[..., 7:] = torch.randn_like(x[..., 7:])
    for bidirectional, same in ((False, True), (True, False)):
        network = MaskInference(**SMALL, bidirectional=bidirectional).eval()
        before, after = (network(signal)["masks"][..., :7] for signal in (x, changed))
        assert torch.equal(before, after) == same


@pytest.mark.parametrize(
    "option",
    [{"units": 9}, {"layers": 1}, {"bidirectional": False}, {"activation": "relu"}, {"floor": -20.0}, {"dropout": 0.9}],
)
def test_every_option_changes_the_masks(option):
    x = spectrogram() * 0.1

    def masks(**options):
        torch.manual_seed(0)
        return MaskInference(**{**SMALL, **options})(x)["masks"]

    assert not torch.allclose(masks(), masks(**option))


def test_level_in_decibels():
    assert decibels(torch.tensor([1.0 + 0j, 10j, 0.0]), floor=-80).tolist() == pytest.approx([0, 20, -80])


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown activation sigmoidal; choose from sigmoid, softmax"):
        MaskInference(**SMALL, activation="sigmoidal")
    with pytest.raises(ValueError, match="layers=0"):
        MaskInference(**{**SMALL, "layers": 0})
