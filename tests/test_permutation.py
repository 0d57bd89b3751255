"""The pairing of estimates and references by exhaustive search and the Hungarian method, and all pairs' SI-SDR."""

from itertools import permutations

import pytest
import torch
from torch.autograd import gradcheck
from torchmetrics.functional.audio import permutation_invariant_training, scale_invariant_signal_distortion_ratio

from separate import numerics
from separate.evaluation.sdr import pairwise_si_sdr, si_sdr
from separate.losses import permutation
from separate.losses.permutation import best_permutation, select


def least(cost: torch.Tensor) -> torch.Tensor:
    """(M, S) -> (S,), by trying everything."""
    count = range(cost.shape[1])
    return torch.tensor(
        min(permutations(range(cost.shape[0]), len(count)), key=lambda o: sum(cost[o[j], j] for j in count))
    )


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (5, 5), (6, 6), (2, 1), (4, 2), (5, 3), (7, 3), (30, 1)])
def test_the_best_order_is_that_of_brute_force(shape):
    cost = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    found = best_permutation(cost)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.stack([least(c) for c in cost]))


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (4, 2)])
def test_the_hungarian_method_and_the_exhaustive_search_agree(shape, monkeypatch):
    cost = torch.randn(20, *shape)
    expected = best_permutation(cost)
    monkeypatch.setattr(permutation, "MOST_ORDERS", 0)
    assert torch.equal(best_permutation(cost), expected)


def test_many_sources_are_paired():
    order = torch.stack([torch.randperm(40) for _ in range(3)])
    cost = 1 - torch.nn.functional.one_hot(order, 40).mT.float() + 0.1 * torch.rand(3, 40, 40)
    assert torch.equal(best_permutation(cost), order)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (6, 6), (8, 5)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_example_with_a_cost_that_is_not_finite_keeps_its_order_and_no_other_does(shape, bad):
    cost = torch.randn(2, *shape)
    cost[:, range(shape[1]), range(shape[1])] = 5  # the worst of orders
    cost[0, 1, 0] = bad
    found = best_permutation(cost)
    assert torch.equal(found[0], torch.arange(shape[1]))
    assert torch.equal(found[1], least(cost[1]))


def test_fewer_estimates_than_references_are_refused():
    with pytest.raises(ValueError, match="2 estimates cannot be paired with 3 references"):
        best_permutation(torch.zeros(1, 2, 3))


def test_select_leaves_out_the_estimates_that_no_reference_has():
    estimates = torch.randn(2, 4, 3, 5)
    order = torch.tensor([[3, 1], [0, 2]])
    chosen = select(estimates, order)
    assert torch.equal(chosen, torch.stack([estimates[0, [3, 1]], estimates[1, [0, 2]]]))


def pairs(dtype: torch.dtype, samples: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """References of unequal level, and estimates of them from -10 to 40 dB, one of them left over."""
    g = torch.Generator().manual_seed(0)
    references = torch.randn(6, 3, samples, generator=g, dtype=torch.float64) * torch.tensor([1e-3, 1, 100])[:, None]
    noise = torch.randn(6, 3, samples, generator=g, dtype=torch.float64) * references.std(-1, keepdim=True)
    levels = torch.tensor([-10.0, 0, 10, 20, 30, 40])[:, None, None]
    estimates = torch.cat([references + noise * 10 ** (-levels / 20), noise[:, :1]], dim=1)
    return estimates.to(dtype), references.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1000, 2**19])
def test_all_pairs_are_the_si_sdr_of_each_and_so_is_their_gradient(dtype, block, monkeypatch):
    monkeypatch.setattr(numerics, "CACHED", block)
    estimates, references = (x.requires_grad_() for x in pairs(dtype))
    found, expected = pairwise_si_sdr(estimates, references), si_sdr(estimates.unsqueeze(2), references.unsqueeze(1))
    single = dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if single else 1e-9)
    factors = torch.randn_like(found)
    ours = torch.autograd.grad((found * factors).sum(), (estimates, references))
    theirs = torch.autograd.grad((expected * factors).sum(), (estimates, references))
    for a, b in zip(ours, theirs, strict=True):
        error = (a - b).norm(dim=-1) / b.norm(dim=-1)
        assert error.max() < (1e-2 if single else 1e-8)


def test_float32_is_exact_but_for_the_ceiling():
    g = torch.Generator().manual_seed(0)
    references = torch.randn(40, 1, 32000, generator=g)
    noise = torch.randn(40, 2, 32000, generator=g)
    estimates = references + noise * 10 ** (-torch.linspace(-10, 55, 40)[:, None, None] / 20)
    exact = si_sdr(estimates.double().unsqueeze(2), references.double().unsqueeze(1))
    found = pairwise_si_sdr(estimates, references).double()
    assert exact.max() > 54
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_all_pairs_are_torchmetrics_permutation_invariant_si_sdr():
    estimates, references = pairs(torch.float64)
    estimates = estimates[:, [2, 0, 1]]
    best, order = permutation_invariant_training(estimates, references, scale_invariant_signal_distortion_ratio)
    found = pairwise_si_sdr(estimates, references)
    assert torch.equal(best_permutation(-found), order)
    chosen = found.gather(1, order.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen.mean(1), best)


def test_gradients_are_those_of_finite_differences():
    estimates = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    references = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)
    assert gradcheck(pairwise_si_sdr, (estimates, references))
    assert gradcheck(pairwise_si_sdr, (estimates, references.detach()))


def test_silence_and_perfection_have_the_floor_and_the_ceiling_of_si_sdr_and_finite_gradients():
    signal = torch.randn(1, 1, 500)
    estimates = torch.cat([torch.zeros_like(signal), signal, 1e-30 * signal], dim=1).requires_grad_()
    references = torch.cat([torch.zeros_like(signal), 3 * signal], dim=1).requires_grad_()
    found = pairwise_si_sdr(estimates, references)
    expected = si_sdr(estimates.unsqueeze(2), references.unsqueeze(1))
    assert found[0, 1, 1] > 60 < expected[0, 1, 1]
    mask = torch.ones_like(found, dtype=torch.bool)
    mask[0, 1, 1] = False  # both at their ceilings, which rounding moves
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-3)
    found.sum().backward()
    assert estimates.grad.isfinite().all()
    assert references.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_also_under_autocast(dtype):
    estimates, references = pairs(torch.float32, 1000)
    low = (estimates / 100).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairwise_si_sdr(low, references / 100)
        found.sum().backward()
    assert found.dtype == torch.float32
    assert low.grad.dtype == dtype
    single = low.detach().float().requires_grad_()
    expected = pairwise_si_sdr(single, references / 100)
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(low.grad, single.grad.to(dtype))


def test_signals_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match=r"references \(1, 2, 1\) must agree"):
        pairwise_si_sdr(torch.zeros(1, 2, 50), torch.zeros(1, 2, 1))
