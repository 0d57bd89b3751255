"""Networks and losses against independent implementations, with the same weights and signals."""

import auraloss
import openunmix.model
import pytest
import torch
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
    scale_invariant_signal_noise_ratio,
    signal_noise_ratio,
)

from separate import targets
from separate.data.batch import Batch
from separate.losses import MultiResolutionSTFTLoss, SDSDRLoss, SISDRLoss, SNRLoss
from separate.models.open_unmix import OpenUnmix, state_from_openunmix
from separate.separator import Separation

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("unidirectional", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_open_unmix_is_that_of_the_openunmix_package(channels, unidirectional, training):
    torch.manual_seed(0)
    bins, kept, rate = 65, 47, 44100
    theirs = [
        openunmix.model.OpenUnmix(
            bins, channels, 16, 2, unidirectional, torch.randn(bins).numpy(), torch.rand(bins).numpy() + 0.5, kept
        )
        for _ in range(2)
    ]
    bandwidth = (kept - 1) * rate / 2 / (bins - 1)
    ours = OpenUnmix(2, channels, bins, rate, 16, 2, bidirectional=not unidirectional, dropout=0.0, bandwidth=bandwidth)
    ours.load_state_dict(state_from_openunmix([network.state_dict() for network in theirs]))
    ours.double().train(training)
    spectrogram = torch.randn(3, channels, bins, 11, dtype=torch.complex128)
    masks = ours(spectrogram)["masks"]
    for source, network in enumerate(theirs):
        network.lstm.dropout = 0.0
        expected = network.double().train(training)(spectrogram.abs())
        torch.testing.assert_close(masks[:, source] * spectrogram.abs(), expected)


def test_open_unmix_takes_the_state_of_the_packages_separator_with_its_extra_entries():
    network = openunmix.model.OpenUnmix(33, 1, 8, 1)
    state = {**network.state_dict(), "sample_rate": torch.tensor(44100.0), "stft.window": torch.ones(4)}
    ours = OpenUnmix(1, 1, 33, 44100, 8, 1, bandwidth=None)
    ours.load_state_dict(state_from_openunmix([state]))


@pytest.fixture
def signals() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    sources = torch.randn(4, 3, 1, 4000)
    return 0.7 * sources + 0.3 * sources.roll(1, dims=1) + 0.3 * torch.randn(4, 3, 1, 4000) + 0.05, sources


def loss_of(loss, estimates, sources) -> torch.Tensor:
    batch = Batch(sources.sum(1), sources)
    return loss(Separation(batch, {"waveforms": estimates}), batch)[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda pit: SISDRLoss(targets.waveform, interchangeable=pit), scale_invariant_signal_distortion_ratio),
        (lambda pit: SISDRLoss(targets.waveform, True, interchangeable=pit), scale_invariant_signal_noise_ratio),
        (lambda pit: SNRLoss(targets.waveform, None, interchangeable=pit), signal_noise_ratio),
    ],
    ids=["si_sdr", "si_snr", "snr"],
)
def test_losses_in_decibels_and_their_permutation_are_those_of_torchmetrics(ours, theirs, signals):
    estimates, sources = signals
    torch.testing.assert_close(loss_of(ours(False), estimates, sources), -theirs(estimates, sources).mean(), **CLOSE)
    estimates = estimates.roll(1, dims=1)
    best, _ = permutation_invariant_training(estimates.squeeze(2), sources.squeeze(2), theirs)
    torch.testing.assert_close(loss_of(ours(True), estimates, sources), -best.mean(), **CLOSE)


def test_scale_dependent_sdr_is_that_of_auraloss(signals):
    estimates, sources = signals
    expected = auraloss.time.SDSDRLoss(zero_mean=False)(estimates.flatten(0, 1), sources.flatten(0, 1))
    torch.testing.assert_close(loss_of(SDSDRLoss(targets.waveform), estimates, sources), expected, **CLOSE)


def test_multi_resolution_stft_is_that_of_auraloss(signals):
    estimates, sources = signals
    theirs = auraloss.freq.MultiResolutionSTFTLoss()  # one signal at a time: it takes a batch as one
    pairs = zip(estimates.flatten(0, 1), sources.flatten(0, 1), strict=True)
    expected = torch.stack([theirs(estimate[None], source[None]) for estimate, source in pairs]).mean()
    torch.testing.assert_close(
        loss_of(MultiResolutionSTFTLoss(targets.waveform), estimates, sources), expected, **CLOSE
    )
