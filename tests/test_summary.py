"""The summary of a network: shapes, multiply-accumulates and receptive fields against known values."""

import pytest
import torch
from torch import nn

from separate.parts import build_separator
from separate.separator import Separator, Signals
from separate.stft import STFT
from separate.summary import macs, receptive_field, summary
from tests.tiny import MODELS, config_of


class Convolution(nn.Module):
    """One convolution that sees `back` samples before and `ahead` samples after each sample."""

    provides = ("waveforms",)

    def __init__(self, back: int, ahead: int) -> None:
        super().__init__()
        self.pad = (back, ahead)
        self.convolution = nn.Conv1d(1, 2, back + ahead + 1)

    def forward(self, mixture: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"waveforms": self.convolution(nn.functional.pad(mixture, self.pad)).unsqueeze(2)}


@pytest.mark.parametrize(("back", "ahead"), [(7, 0), (40, 16), (0, 3)])
def test_receptive_field_and_cost_of_a_convolution(back, ahead):
    separator = Separator(Convolution(back, ahead), STFT(64, 32), Signals(["a", "b"], 1000))
    assert receptive_field(separator) == (back / 1000, ahead / 1000)
    assert macs(separator) == 2 * (back + ahead + 1) * 1000
    text = summary(separator)
    assert f"past context           {back:.1f} ms" in text
    assert "convolution  Conv1d  1 x 2 x 1000" in text


def test_a_field_longer_than_a_second_is_found_too():
    separator = Separator(Convolution(3000, 0), STFT(64, 32), Signals(["a", "b"], 1000))
    assert receptive_field(separator) == (3.0, 0.0)


def test_recurrent_layers_look_back_to_the_start_and_bidirectional_ones_to_the_end():
    one, both = (build_separator(config_of("blstm", options={"bidirectional": b})) for b in (False, True))
    assert receptive_field(both) == (torch.inf, torch.inf)
    back, ahead = receptive_field(one)
    assert back == torch.inf
    assert ahead == 64 / 8000  # a window of the STFT


def test_the_cost_of_an_lstm_is_its_matrix_products():
    separator = build_separator(config_of("blstm", options={"layers": 2, "units": 10}))
    frames = 1 + 8000 // 32
    recurrent = sum(2 * 4 * 10 * (inputs + 10) for inputs in (33, 20))  # two directions, four gates
    assert macs(separator) == frames * (recurrent + 20 * 2 * 33)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_summarised(model):
    separator = build_separator(config_of(model))
    text = summary(separator)
    total = sum(p.numel() for p in separator.parameters())
    assert f"parameters             {total:,}" in text
    assert macs(separator) > 0


def test_a_network_of_patches_looks_ahead_as_far_as_a_patch():
    separator = build_separator(config_of("unet"))  # patches of 8 frames
    assert receptive_field(separator) == ((7 * 32 + 64) / 8000, (7 * 32 + 64) / 8000)
