"""Perceptual metrics of other packages: rates, channels, silence, and a package that is not installed."""

import sys

import numpy as np
import pytest
import torch

from separate.errors import UsageError
from separate.evaluation import perceptual
from separate.evaluation.metrics import load_metrics
from separate.evaluation.scores import score_recording

METRICS = {"pesq": perceptual.pesq, "stoi": perceptual.stoi, "estoi": perceptual.estoi}


def voice(seconds: float = 2.0, rate: int = 16000, seed: int = 0) -> torch.Tensor:
    """Bursts of a harmonic tone with a moving pitch, which the speech metrics take for speech.  (T,)"""
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    phase = 2 * torch.pi * torch.cumsum(140 + 30 * torch.sin(2 * torch.pi * 1.3 * time + seed), 0) / rate
    harmonics = sum(torch.sin(k * phase) / k for k in range(1, 20))
    return 0.1 * harmonics * (0.05 + torch.sin(2 * torch.pi * 3 * time + seed).clamp_min(0))


def noisy(reference: torch.Tensor, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return reference + level * torch.randn(reference.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", METRICS)
def test_they_agree_with_their_packages_and_fall_with_noise(name):
    pesq, pystoi = pytest.importorskip("pesq"), pytest.importorskip("pystoi")
    reference = voice()
    packages = {
        "pesq": lambda x: pesq.pesq(16000, reference.numpy(), x, "wb"),
        "stoi": lambda x: pystoi.stoi(reference.numpy(), x, 16000),
        "estoi": lambda x: pystoi.stoi(reference.numpy(), x, 16000, extended=True),
    }
    estimates = [noisy(reference, level) for level in (0.003, 0.1)]
    found = [METRICS[name](*(x.view(1, 1, 1, -1) for x in (one, reference)), None, 16000)[name] for one in estimates]
    assert [x.item() for x in found] == pytest.approx([packages[name](one.numpy()) for one in estimates])
    assert found[0] > found[1]


def test_pesq_resamples_to_a_rate_of_its_own():
    pesq = pytest.importorskip("pesq")
    high, low = voice(rate=44100), voice(rate=8000)
    wide = perceptual.pesq(noisy(high, 0.01).view(1, 1, 1, -1), high.view(1, 1, 1, -1), None, 44100)["pesq"]
    narrow = perceptual.pesq(noisy(low, 0.01).view(1, 1, 1, -1), low.view(1, 1, 1, -1), None, 8000)["pesq"]
    assert 1 < wide.item() < 4.65
    assert narrow.item() == pytest.approx(pesq.pesq(8000, low.numpy(), noisy(low, 0.01).numpy(), "nb"))


def test_the_score_of_a_source_is_the_mean_over_its_channels():
    pytest.importorskip("pystoi")
    reference = voice()
    references = reference.view(1, 1, 1, -1).repeat(1, 2, 2, 1)
    estimates = torch.stack(
        [torch.stack([noisy(reference, a), noisy(reference, b)]) for a, b in ((0, 0.1), (0.1, 0.1))]
    )
    found = perceptual.stoi(estimates[None], references, None, 16000)["stoi"]
    assert found.shape == (1, 2)
    assert found[0, 0] == pytest.approx((1 + found[0, 1].item()) / 2, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_silence_and_signals_without_speech_have_no_score(name):
    pytest.importorskip("pesq")
    speech, silence = voice().view(1, 1, 1, -1), torch.zeros(1, 1, 1, 32000, dtype=torch.float64)
    assert METRICS[name](silence, speech, None, 16000)[name].isnan().all()
    assert METRICS[name](speech[..., :1000], speech[..., :1000], None, 16000)[name].isnan().all()


def test_log_wmse_scores_silent_references_and_agrees_with_its_package():
    package = pytest.importorskip("torch_log_wmse")
    references = torch.stack([voice(seed=n) for n in range(3)]).view(1, 3, 1, -1)
    references[:, 2] = 0
    estimates = references + 0.01 * references.roll(1, 1)
    found = score_recording(
        estimates, references, references.sum(1), 16000, load_metrics(["log_wmse"], families=True), False
    )
    metric = package.LogWMSE(sample_rate=16000)
    wanted = [metric(references.sum(1), *(x[:, s, :, None] for x in (estimates, references))).item() for s in range(3)]
    assert found.values["log_wmse"][0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert found.values["si_sdr"].isnan().tolist() == [[False, False, True]]


def test_dnsmos_needs_no_reference_and_falls_with_noise():
    pytest.importorskip("speechmos.dnsmos")
    reference = voice(9.5, rate=8000)
    estimates = torch.stack([reference, noisy(reference, 0.1)]).view(1, 2, 1, -1)
    found = perceptual.dnsmos(4 * estimates, torch.full_like(estimates, np.nan), None, 8000)
    assert set(found) == {"dnsmos", "dnsmos_speech", "dnsmos_background"}
    for name, scores in found.items():
        assert scores.shape == (1, 2) and (scores > 0.9).all() and (scores < 5).all(), name
    assert found["dnsmos_background"][0, 0] > found["dnsmos_background"][0, 1]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("pesq", "pesq"),
        ("stoi", "pystoi"),
        ("estoi", "pystoi"),
        ("log_wmse", "torch_log_wmse"),
        ("dnsmos", "speechmos.dnsmos"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    signals = torch.ones(1, 1, 1, 100, dtype=torch.float64)
    with pytest.raises(UsageError) as refused:
        score_recording(signals, signals, 2 * signals[:, 0], 16000, load_metrics([name], families=True), False)
    assert f"metrics=[{name}] needs the package {module}" in str(refused.value)
    assert "pip install 'separate[metrics]'" in str(refused.value)
