"""Deep clustering losses: agreement with written-out affinity matrices in float64, gradients, invariances, silence."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import normalize, one_hot

from separate import numerics
from separate.losses import affinity
from separate.losses.affinity import deep_clustering, whitened

LOSSES = [deep_clustering, whitened]


def example(batch: int = 2, bins: int = 30, size: int = 4, sources: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Unit-length embeddings, one-hot assignments and weights, float64."""
    g = torch.Generator().manual_seed(seed)
    embeddings = normalize(torch.randn(batch, bins, size, generator=g, dtype=torch.float64), dim=2)
    assignments = one_hot(torch.randint(sources, (batch, bins), generator=g), sources).double()
    return embeddings, assignments, torch.rand(batch, bins, generator=g, dtype=torch.float64)


def written_out(v: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """|W^1/2 (V V^T - Y Y^T) W^1/2|^2 / (sum w)^2 with its P x P matrices."""
    root = torch.diag_embed(w.sqrt())
    return (root @ (v @ v.mT - y @ y.mT) @ root).square().sum((1, 2)) / w.sum(1) ** 2


def written_out_whitened(v: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """|V (V^T V)^-1/2 - Y (Y^T Y)^-1 Y^T V (V^T V)^-1/2|^2: whitened embeddings minus their mean for each source."""
    v, y = v * w.sqrt()[..., None], y * w.sqrt()[..., None]
    values, vectors = torch.linalg.eigh(v.mT @ v)
    white = v @ vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT
    return (white - y @ torch.linalg.pinv(y) @ white).square().sum((1, 2))


@pytest.mark.parametrize("block", [1, 50, 2**20])
def test_deep_clustering_is_the_written_out_difference_of_affinities(block, monkeypatch):
    monkeypatch.setattr(numerics, "CACHED", block)
    v, y, w = example()
    v.requires_grad_()
    loss, expected = deep_clustering(v, y, w), written_out(v, y, w)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradients = [torch.autograd.grad((x * factors).sum(), v)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_whitened_is_the_written_out_distance_of_whitened_embeddings(monkeypatch):
    v, y, w = example()
    v.requires_grad_()
    torch.testing.assert_close(whitened(v, y, w), written_out_whitened(v, y, w), rtol=1e-3, atol=0)
    monkeypatch.setattr(affinity, "RIDGE", 0)
    loss, expected = whitened(v, y, w), written_out_whitened(v, y, w)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(x.sum(), v)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", [20, 2**20])
def test_gradients_are_those_of_finite_differences(loss, block, monkeypatch):
    monkeypatch.setattr(numerics, "CACHED", block)
    v, y, w = example(bins=9, size=3, sources=2)
    assert gradcheck(lambda v: loss(2 * v, y, w), v.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_sources_and_of_bins_does_not_matter(loss):
    v, y, w = example()
    expected = loss(v, y, w)
    torch.testing.assert_close(loss(v, y[..., [2, 0, 1]], w), expected)
    order = torch.randperm(v.shape[1])
    torch.testing.assert_close(loss(v[:, order], y[:, order], w[:, order]), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_neither_the_scale_of_the_weights_nor_the_number_of_bins_matters(loss):
    v, y, w = example()
    expected = loss(v, y, w)
    torch.testing.assert_close(loss(v, y, 1e-20 * w), expected)
    torch.testing.assert_close(loss(*(x.repeat_interleave(50, dim=1) for x in (v, y, w))), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_0_and_1_choose_bins(loss):
    v, y, w = example()
    chosen = w[:1] > 0.5
    kept = [x[:1][chosen][None] for x in (v, y)]
    torch.testing.assert_close(loss(v[:1], y[:1], chosen), loss(*kept, torch.ones_like(kept[0][..., 0])))


def test_embeddings_that_are_the_sources_cost_the_least():
    _, y, w = example()
    rotated = y @ torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q.mT  # (B, P, 5), any orthonormal basis
    assert deep_clustering(rotated, y, w).abs().max() < 1e-15
    assert deep_clustering(rotated.float(), y, w).abs().max() < 1e-6
    torch.testing.assert_close(whitened(rotated, y, w), torch.full((2,), 2.0).double(), rtol=1e-4, atol=0)  # D - S


def test_the_whitened_loss_lies_between_dimensions_less_sources_and_dimensions():
    v, y, w = example(bins=4000, size=6)
    found = whitened(v, y, w)
    assert ((found > 5.9) & (found < 6)).all()  # of random embeddings the sources explain nothing
    torch.testing.assert_close(whitened(1e3 * v, y, w), found)
    mixing = torch.randn(6, 6, dtype=torch.float64)
    torch.testing.assert_close(whitened(v @ mixing, y, w), found, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_silence_one_bin_and_collapsed_embeddings_are_finite_with_finite_gradients(loss, dtype):
    v, y, w = example(bins=20)
    zero, silent = torch.zeros_like, y.clone()
    silent[..., 1] = 0
    cases = {
        "no weights": (v, y, zero(w)),
        "no embeddings": (zero(v), y, w),
        "no sources": (v, zero(y), w),
        "a silent source": (v, silent, w),
        "one bin": (v[:, :1], y[:, :1], w[:, :1]),
        "one embedding for all": (v[:, :1].expand_as(v), y, w),
        "nearly one": (v[:, :1] + 1e-4 * v, y, w),
    }
    for name, (v_, y_, w_) in cases.items():
        v_ = v_.to(dtype).clone().requires_grad_()
        found = loss(v_, y_.to(dtype), w_.to(dtype))
        assert found.isfinite().all(), name
        found.sum().backward()
        assert v_.grad.isfinite().all(), name
        assert v_.grad.dtype == dtype
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if name == "no weights":
            assert not found.any()
            assert not v_.grad.any()
        if loss is whitened and name != "no weights":
            assert ((found > 4 - 3 - 1e-3) & (found < 4 + 1e-3)).all(), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_lower_precision_agrees_with_float64_also_under_autocast(loss, dtype, precision):
    v, y, w = example(bins=5000, size=20)
    low = v.to(dtype).requires_grad_()
    exact = low.detach().double().requires_grad_()  # the same numbers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(low, y.float(), w.float())
        (1024 * found.sum()).backward()  # scaled, as a training in float16 does
    expected = loss(exact, y, w.float().double())
    (1024 * expected.sum()).backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert (low.grad - exact.grad).norm() < precision * exact.grad.norm()


def test_an_example_of_nan_spoils_only_itself():
    v, y, w = example()
    v[0, 0, 0] = torch.nan
    for loss in LOSSES:
        found = loss(v, y, w)
        assert found[0].isnan()
        assert found[1].isfinite()


def test_shapes_that_do_not_agree_are_refused():
    v, y, w = example()
    with pytest.raises(ValueError, match=r"weights \(2, 29\) must agree"):
        deep_clustering(v, y, w[:, 1:])
