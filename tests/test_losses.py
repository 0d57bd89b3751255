"""Losses: known answers, permutation invariance, silence."""

import itertools

import pytest
import torch

from separate import targets
from separate.batch import Batch
from separate.losses import SISDRLoss, SpectralLoss
from separate.separator import Separation
from separate.stft import STFT

STFT_ = STFT(64, 16)
ALL = [
    lambda pit: SpectralLoss(targets.tpsa, "l1", pit),
    lambda pit: SpectralLoss(targets.msa, "mse", pit),
    lambda pit: SISDRLoss(targets.waveform, pit),
]


def batch(sources: torch.Tensor) -> Batch:
    return Batch(sources.sum(1), sources, stft=STFT_)


def masks(of: Batch) -> torch.Tensor:
    return torch.rand(*of.source_spectrograms.shape, requires_grad=True)


def test_the_target_itself_costs_nothing():
    data = batch(torch.randn(2, 3, 1, 400))
    perfect = targets.tpsa(data.source_spectrograms, data.spectrogram) / data.spectrogram.abs().unsqueeze(1)
    loss, parts = SpectralLoss(targets.tpsa)(Separation(data, masks=perfect), data)
    assert loss.item() < 1e-6
    assert parts == {}


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("mse", 2)])
def test_spectral_loss_is_its_formula(distance, power):
    data = batch(torch.randn(2, 2, 1, 400))
    mask = masks(data)
    error = mask * data.spectrogram.abs().unsqueeze(1) - data.source_spectrograms.abs()
    loss, _ = SpectralLoss(targets.msa, distance)(Separation(data, masks=mask), data)
    torch.testing.assert_close(loss, error.abs().pow(power).mean())


def test_si_sdr_loss_takes_masks_through_the_inverse_transform():
    data = batch(torch.randn(2, 2, 1, 400))
    ones = torch.ones(data.source_spectrograms.shape)
    separation = Separation(data, masks=ones)
    torch.testing.assert_close(separation.estimates[:, 0], data.mixture, atol=1e-5, rtol=0)
    waveforms = Separation(data, waveforms=separation.estimates)
    loss = SISDRLoss(targets.waveform)
    torch.testing.assert_close(loss(separation, data)[0], loss(waveforms, data)[0])


@pytest.mark.parametrize("make", ALL)
def test_interchangeable_sources_may_come_in_any_order(make):
    torch.manual_seed(0)
    data = batch(torch.randn(4, 3, 1, 400))
    mask = masks(data)
    expected = make(True)(Separation(data, masks=mask), data)[0]
    for order in itertools.permutations(range(3)):
        shuffled = batch(data.sources[:, list(order)])
        torch.testing.assert_close(make(True)(Separation(shuffled, masks=mask), shuffled)[0], expected)
    each = torch.stack(
        [
            torch.stack([make(False)(Separation(one, masks=mask[i : i + 1]), one)[0] for one in orders])
            for i in range(4)
            for orders in [[batch(data.sources[i : i + 1, list(o)]) for o in itertools.permutations(range(3))]]
        ]
    )
    torch.testing.assert_close(each.amin(1).mean(), expected)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("silent", ["one source", "everything", "nothing, one sample"])
@pytest.mark.parametrize("pit", [False, True])
def test_silence_is_finite_with_finite_gradients(make, silent, pit):
    sources = torch.randn(2, 2, 1, 1 if "sample" in silent else 400)
    if silent == "one source":
        sources[:, 1] = 0
    if silent == "everything":
        sources[:] = 0
    data = batch(sources)
    mask = masks(data)
    loss, _ = make(pit)(Separation(data, masks=mask), data)
    loss.backward()
    assert loss.isfinite()
    assert mask.grad is not None
    assert mask.grad.isfinite().all()


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="unknown distance l2; choose from l1, mse"):
        SpectralLoss(targets.tpsa, "l2")


def test_a_batch_transforms_at_most_once(monkeypatch):
    calls = []
    stft = STFT(64, 16)
    monkeypatch.setattr(stft, "forward", lambda x, f=stft.forward: (calls.append(x.shape), f(x))[1])
    data = Batch(torch.randn(2, 1, 400), torch.randn(2, 2, 1, 400), stft=stft)
    for _ in range(3):
        SpectralLoss(targets.tpsa)(Separation(data, masks=masks(data)), data)
    assert len(calls) == 2  # the mixture, the sources
