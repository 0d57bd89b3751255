"""The targets against their formulas in float64 NumPy."""

import numpy as np
import pytest
import torch

from separate import targets

rng = np.random.default_rng(0)
S = rng.standard_normal((2, 3, 1, 5, 7)) + 1j * rng.standard_normal((2, 3, 1, 5, 7))
Y = S.sum(axis=1)
PSA = np.abs(S) * np.cos(np.angle(S) - np.angle(Y)[:, None])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("msa", np.abs(S)), ("psa", PSA), ("tpsa", np.clip(PSA, 0, np.abs(Y)[:, None]))],
)
def test_target_is_its_formula(name, expected):
    found = getattr(targets, name)(torch.from_numpy(S), torch.from_numpy(Y))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["msa", "psa", "tpsa"])
def test_target_of_silence_is_finite(name):
    found = getattr(targets, name)(torch.zeros(1, 2, 1, 3, 4, dtype=torch.complex64), torch.zeros(1, 1, 3, 4) + 0j)
    assert torch.equal(found, torch.zeros(1, 2, 1, 3, 4))


def test_psa_of_the_sources_adds_up_to_the_mixture():
    assert torch.allclose(targets.psa(torch.from_numpy(S), torch.from_numpy(Y)).sum(1), torch.from_numpy(np.abs(Y)))


def test_waveform_target_is_the_sources():
    x = torch.randn(2, 3, 1, 50)
    assert targets.waveform(x, x.sum(1)) is x
