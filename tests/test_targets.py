"""The targets against their formulas in float64 NumPy."""

import numpy as np
import pytest
import torch

from separate import targets
from separate.data.batch import Batch
from separate.evaluation.recordings import masked, tpsa_masks
from separate.evaluation.sdr import snr
from separate.stft import STFT

rng = np.random.default_rng(0)
S = rng.standard_normal((2, 3, 1, 5, 7)) + 1j * rng.standard_normal((2, 3, 1, 5, 7))
Y = S.sum(axis=1)
REST = rng.standard_normal((2, 1, 5, 7)) + 1j * rng.standard_normal((2, 1, 5, 7))  # noise beside the sources


def formulas(s: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Each target written out; s: (B, S, C, F, N), y: (B, C, F, N)."""
    y = y[:, None]
    rest = y - s.sum(axis=1, keepdims=True)
    level, psa = np.abs(s), np.abs(s) * np.cos(np.angle(s) - np.angle(y))
    every = np.concatenate([level, np.abs(rest)], axis=1)
    ratio = s / y
    return {
        "msa": level,
        "psa": psa,
        "tpsa": np.clip(psa, 0, np.abs(y)),
        "ibm": (level == every.max(axis=1, keepdims=True)).astype(float),
        "irm": level / every.sum(axis=1, keepdims=True),
        "wiener": level**2 / (every**2).sum(axis=1, keepdims=True),
        "iam": np.minimum(level / np.abs(y), 10),
        "psm": np.clip(psa / np.abs(y), -10, 10),
        "cirm": sum(
            unit * 10 * (1 - np.exp(-0.1 * part)) / (1 + np.exp(-0.1 * part))
            for unit, part in ((1, ratio.real), (1j, ratio.imag))
        ),
    }


@pytest.mark.parametrize("name", [name for name in targets.TARGETS if name != "waveform"])
@pytest.mark.parametrize("mixture", [Y, Y + REST], ids=["all of the mixture", "with noise beside"])
def test_target_is_its_formula(name, mixture):
    found = targets.TARGETS[name](torch.from_numpy(S), torch.from_numpy(mixture))
    np.testing.assert_allclose(found.numpy(), formulas(S, mixture)[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in targets.TARGETS if name != "waveform"])
def test_the_target_of_a_silent_source_is_silence(name):
    silent, quiet = torch.zeros(1, 2, 1, 3, 4, dtype=torch.complex64), torch.zeros(1, 1, 3, 4) + 0j
    assert targets.TARGETS[name](silent, quiet).abs().max() == 0
    one = torch.cat([torch.randn_like(silent[:, :1]), silent[:, 1:]], dim=1)
    found = targets.TARGETS[name](one, one.sum(1))
    assert found.isfinite().all() if not found.is_complex() else torch.view_as_real(found).isfinite().all()
    assert found[:, 1].abs().max() == 0


@pytest.mark.parametrize("name", ["irm", "wiener", "ibm", "psm"])
def test_masks_of_all_sources_add_up_to_one_in_each_bin(name):
    found = targets.TARGETS[name](torch.from_numpy(S), torch.from_numpy(Y))
    if name == "psm":
        found = targets.psm(torch.from_numpy(S), torch.from_numpy(Y), limit=np.inf)
    torch.testing.assert_close(found.sum(1), torch.ones(Y.shape, dtype=torch.float64))


def test_only_bins_near_the_loudest_are_audible():
    mixture = torch.tensor([1.0, 0.1, 0.009, 0.0]).reshape(1, 1, 4, 1) + 0j
    assert targets.audible(mixture, -40).flatten().tolist() == [1, 1, 0, 0]
    assert targets.audible(torch.zeros(1, 1, 4, 1) + 0j, -40).sum() == 0


def test_psa_of_the_sources_adds_up_to_the_mixture():
    assert torch.allclose(targets.psa(torch.from_numpy(S), torch.from_numpy(Y)).sum(1), torch.from_numpy(np.abs(Y)))


def test_waveform_target_is_the_sources():
    x = torch.randn(2, 3, 1, 50)
    assert targets.waveform(x, x.sum(1)) is x


def test_the_tpsa_mask_is_the_best_of_each_bin_and_not_of_the_samples():
    stft = STFT(64, 16)
    sources = torch.randn(1, 2, 1, 800, generator=torch.Generator().manual_seed(0))
    batch = Batch(sources.sum(1), sources, stft=stft)
    of_sources, mixture = batch.source_spectrograms, batch.spectrogram.unsqueeze(1)
    mask = targets.tpsa(of_sources, batch.spectrogram) / mixture.abs()
    error = (mask * mixture - of_sources).abs()
    for other in torch.linspace(0, 1, 21):
        assert (error <= (other * mixture - of_sources).abs() + 1e-5).all()
    estimates = masked(batch, tpsa_masks, 800)
    torch.testing.assert_close(estimates, stft.inverse(mask * mixture, 800))
    fitted = mask.clone().requires_grad_()
    optimizer = torch.optim.Adam([fitted], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        (stft.inverse(fitted * mixture, 800) - sources).square().mean().backward()
        optimizer.step()
        fitted.data.clamp_(0, 1)
    best = stft.inverse(fitted.detach() * mixture, 800)
    assert snr(best, sources).mean() > snr(estimates, sources).mean() + 0.5
