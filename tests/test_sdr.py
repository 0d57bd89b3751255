"""SI-SDR and SNR: known answers, invariances, torchmetrics; and the pairing of sources."""

import math

import pytest
import torch
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
    signal_noise_ratio,
)

from separate.evaluation.scores import arrange, score
from separate.evaluation.sdr import si_sdr, snr
from separate.losses.permutation import best_permutation, match, select


def tones(level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A tone, and an orthogonal one `level` dB below it."""
    time = torch.arange(8000, dtype=torch.float64) / 8000
    return torch.sin(2 * torch.pi * 440 * time), 10 ** (-level / 20) * torch.cos(2 * torch.pi * 440 * time)


@pytest.mark.parametrize("level", [-10.0, 0.0, 7.0, 40.0])
def test_orthogonal_tones_score_their_level_difference(level):
    signal, noise = tones(level)
    assert si_sdr(signal + noise, signal).item() == pytest.approx(level, abs=1e-6)
    assert snr(signal + noise, signal).item() == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_torchmetrics(dtype):
    torch.manual_seed(0)
    reference = torch.randn(5, 3, 4000, dtype=dtype)
    estimate = reference + torch.randn_like(reference) * torch.logspace(-2, 1, 5, dtype=dtype)[:, None, None]
    torch.testing.assert_close(
        si_sdr(estimate, reference), scale_invariant_signal_distortion_ratio(estimate, reference), rtol=1e-3, atol=1e-3
    ) if dtype == torch.float32 else torch.testing.assert_close(
        si_sdr(estimate, reference), scale_invariant_signal_distortion_ratio(estimate, reference), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(snr(estimate, reference), signal_noise_ratio(estimate, reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gain", [1e-4, 0.5, -1.0, 300.0])
def test_si_sdr_does_not_depend_on_gain(gain):
    signal, noise = tones(12)
    assert si_sdr(gain * (signal + noise), signal).item() == pytest.approx(12, abs=1e-6)
    assert si_sdr(signal + noise, gain * signal).item() == pytest.approx(12, abs=1e-6)


@pytest.mark.parametrize("silent", ["estimate", "reference", "both"])
def test_silence_has_a_floor_and_a_finite_gradient(silent):
    estimate = torch.zeros(100) if silent != "reference" else torch.randn(100)
    reference = torch.zeros(100) if silent != "estimate" else torch.randn(100)
    estimate.requires_grad_()
    value = si_sdr(estimate, reference)
    value.backward()
    assert value.item() == pytest.approx(10 * math.log10(torch.finfo(torch.float32).eps), abs=1e-3)
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()


def test_a_perfect_estimate_is_finite_and_very_good():
    signal, _ = tones(0)
    assert 140 < si_sdr(signal, signal).item() < 160


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_the_best_permutation_is_torchmetrics_pit(sources):
    torch.manual_seed(sources)
    reference = torch.randn(6, sources, 500, dtype=torch.float64)
    estimate = torch.randn(6, sources, 500, dtype=torch.float64)
    best, order = permutation_invariant_training(estimate, reference, scale_invariant_signal_distortion_ratio)
    pairwise = -si_sdr(estimate.unsqueeze(2), reference.unsqueeze(1))
    assert torch.equal(best_permutation(pairwise), order)
    torch.testing.assert_close(si_sdr(select(estimate, order), reference).mean(1), best)


def test_match_puts_sources_into_the_order_of_the_reference():
    x = torch.randn(3, 2, 400)
    assert torch.equal(match(x[..., :100], x[[2, 0, 1]], 100), x)
    silent = torch.zeros(3, 2, 50)
    assert torch.equal(match(silent, silent), silent)


def test_scores_of_shuffled_sources_are_those_of_the_sources():
    torch.manual_seed(0)
    sources = torch.randn(2, 3, 2, 1000)
    estimates = sources + 0.1 * torch.randn_like(sources)
    mixture = sources.sum(1)
    plain = score(estimates, sources, mixture, interchangeable=False)
    shuffled = score(estimates[:, [1, 2, 0]], sources, mixture, interchangeable=True)
    for name in plain:
        torch.testing.assert_close(plain[name], shuffled[name])
    assert torch.equal(arrange(estimates[:, [1, 2, 0]], sources), estimates)
    assert score(estimates[:, [1, 2, 0]], sources, mixture, interchangeable=False)["si_sdr"].max() < 0


def test_the_mixture_as_estimate_improves_by_0_dB_and_silence_is_not_scored():
    sources = torch.randn(1, 3, 1, 1000)
    sources[0, 2] = 0
    mixture = sources.sum(1)
    found = score(mixture.unsqueeze(1).expand_as(sources), sources, mixture, interchangeable=False)
    assert torch.equal(found["si_sdri"][0, :2], torch.zeros(2, dtype=torch.float64))
    assert found["si_sdr"][0, 2].isnan()
    assert found["snr"][0, 2].isnan()


def test_a_source_that_is_alone_is_not_scored_and_an_estimate_of_nan_cannot_hide_in_a_mean():
    sources = torch.randn(2, 2, 1, 1000)
    sources[0, 1] = 0
    estimates = sources + 0.1 * torch.randn_like(sources)
    found = score(estimates, sources, sources.sum(1), interchangeable=False)
    assert all(values[0].isnan().all() and values[1].isfinite().all() for values in found.values())
    estimates[1, 0, 0, 3] = torch.nan
    found = score(estimates, sources, sources.sum(1), interchangeable=False)
    assert all(values.nanmean() == -torch.inf for values in found.values())


def test_a_wrong_balance_of_the_channels_costs():
    sources = torch.randn(1, 1, 2, 1000)
    panned = sources * torch.tensor([1.0, 0.5])[:, None]
    assert score(panned, sources, sources[:, 0] + 1, interchangeable=False)["si_sdr"].item() < 15
