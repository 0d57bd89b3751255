"""k-means: scikit-learn's inertia, known answers, edges."""

import pytest
import torch
from torch.nn.functional import normalize

from separate import clustering, numerics
from separate.clustering import Search, assign, kmeans


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, size: int, clusters: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Normal clouds of unit variance, their centres `spread` apart in each dimension.  -> (count, size)"""
    g = generator(seed)
    centres = spread * torch.randn(clusters, size, generator=g)
    return centres[torch.randint(clusters, (count,), generator=g)] + torch.randn(count, size, generator=g)


def unbalanced(count: int, size: int) -> torch.Tensor:
    """Two clouds, one of a 21st of the points."""
    points = torch.randn(count, size, generator=generator(3))
    points[: count // 21, 0] += 4
    return points


def inertia(points: torch.Tensor, centres: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    nearest = torch.cdist(points.double(), centres.double()).square().min(-1).values
    return float((nearest * (1 if weights is None else weights)).sum())


KINDS = {
    "well separated": (blobs(4000, 20, 4, 5.0), 4),
    "overlapping": (blobs(4000, 5, 4, 1.0, 1), 4),
    "unbalanced": (unbalanced(4200, 20), 2),
    "unit sphere": (normalize(blobs(4000, 20, 3, 0.7, 2), dim=1), 3),
    "far from zero": (blobs(3000, 5, 3, 1.0, 4) + 1e4, 3),
    "more than are fitted": (blobs(40_000, 20, 4, 0.6, 5), 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_inertia_is_within_a_hundredth_of_scikit_learns_with_ten_starts(kind, weighted):
    peer = pytest.importorskip("sklearn.cluster")
    points, clusters = KINDS[kind]
    weights = torch.rand(len(points), generator=generator(9)).square() if weighted else None
    theirs = peer.KMeans(clusters, n_init=10, random_state=0)
    theirs.fit(points.double().numpy(), sample_weight=None if weights is None else weights.numpy())
    ours = kmeans(points[None], clusters, None if weights is None else weights[None], Search(sample=20_000))[0]
    assert ours.dtype == points.dtype
    assert inertia(points, ours, weights) < 1.01 * inertia(points, torch.from_numpy(theirs.cluster_centers_), weights)


def test_separate_clouds_are_found_and_labelled():
    means = torch.tensor([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]])
    truth = torch.arange(300) % 3
    points = means[truth] + 0.1 * torch.randn(300, 3, generator=generator(0))
    centres = kmeans(points[None], 3)
    labels = assign(points[None], centres)
    torch.testing.assert_close(centres[0, labels[0].long()], means[truth], rtol=0, atol=0.1)
    assert labels.dtype == torch.int32


def test_one_cluster_is_the_weighted_mean():
    points, weights = torch.randn(2, 50, 4, dtype=torch.float64), torch.rand(2, 50, dtype=torch.float64)
    mean = (points * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(kmeans(points, 1, weights)[:, 0], mean)


def test_each_set_of_a_batch_is_clustered_on_its_own():
    a, b = blobs(500, 3, 2, 6.0, 1), 100 * blobs(500, 3, 2, 6.0, 2)
    together = kmeans(torch.stack([a, b]), 2)
    for points, centres in ((a, together[0]), (b, together[1])):
        assert inertia(points, centres) == pytest.approx(inertia(points, kmeans(points[None], 2)[0]), rel=1e-3)


def test_the_same_seed_gives_the_same_centres_and_leaves_the_global_random_state_alone():
    points = torch.rand(1, 3000, 4, generator=generator(0))
    state = torch.get_rng_state()
    first = kmeans(points, 6, search=Search(sample=1000))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    assert torch.equal(kmeans(points, 6, search=Search(sample=1000)), first)
    assert not torch.equal(kmeans(points, 6, search=Search(sample=1000, seed=1)), first)


def test_more_starts_and_more_iterations_find_less_inertia():
    points = torch.rand(1, 2000, 2, generator=generator(0))

    def mean(**options: int) -> float:
        return (
            sum(inertia(points[0], kmeans(points, 12, search=Search(seed=seed, **options))[0]) for seed in range(8)) / 8
        )

    assert mean(starts=8) < mean(starts=1) < mean(starts=1, iterations=1)


@pytest.mark.parametrize("sample", [100, 10_000])
def test_points_of_weight_0_do_not_count(sample):
    points = blobs(1000, 3, 2, 8.0)
    noise = 1000 * torch.randn(3000, 3, generator=generator(1))
    order = torch.randperm(4000, generator=generator(2))
    every = torch.cat([points, noise])[order][None]
    weights = (torch.arange(4000) < 1000).float()[order][None]
    found = kmeans(every, 2, weights, Search(sample=sample))[0]
    assert inertia(points, found) < 1.1 * inertia(points, kmeans(points[None], 2)[0])


def test_a_sample_stands_for_all_points_by_their_weights(monkeypatch):
    monkeypatch.setattr(numerics, "CACHED", 64)  # several blocks of weights
    points = torch.tensor([[-1.0], [1.0]]).repeat(500, 1)[None]
    weights = torch.tensor([1.0, 3.0]).repeat(500)[None]
    weights[:, :100] = 0
    assert kmeans(points, 1, weights, Search(sample=900)).item() == pytest.approx(0.5, abs=0.05)
    assert kmeans(points, 1, search=Search(sample=900)).item() == pytest.approx(0, abs=0.1)


def test_an_empty_cluster_moves_to_the_farthest_point():
    points = torch.tensor([[0.0], [1.0], [10.0], [50.0]])[None]
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.0]])
    weighted = torch.cat([points * weights[..., None], weights[..., None]], dim=2)
    centres = torch.tensor([0.0, 200.0, 300.0])[None, None, :, None]
    assert clustering._lloyd(points, weighted, centres).flatten().tolist() == pytest.approx([11 / 3, 10, 1])


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_fewer_distinct_points_than_clusters_one_point_and_silence_give_finite_centres(clusters):
    for points in (torch.zeros(1, 40, 3), torch.randn(1, 1, 3), torch.randn(1, 2, 3).repeat(1, 20, 1)):
        for weights in (None, torch.zeros(points.shape[:2]), torch.eye(1, points.shape[1])):
            centres = kmeans(points, clusters, weights)
            assert centres.shape == (1, clusters, 3)
            assert centres.isfinite().all()
            if clusters >= 2 and weights is None:
                assert inertia(points[0], centres[0]) < 1e-8
            if weights is not None and weights.sum() == 1:
                torch.testing.assert_close(centres, points[:, :1].expand_as(centres))
    sampled = kmeans(torch.zeros(2, 50, 3), clusters, torch.zeros(2, 50), Search(sample=10))
    assert torch.equal(sampled, torch.zeros(2, clusters, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_clustered_in_float32(dtype):
    points = normalize(blobs(2000, 20, 2, 1.0), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centres = kmeans(points[None].to(dtype), 2)
        labels = assign(points[None].to(dtype), centres)
    assert centres.dtype == dtype
    assert inertia(points, centres[0]) < 1.01 * inertia(points, kmeans(points[None], 2)[0])
    assert (labels == assign(points[None].to(dtype).float(), centres.float())).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="clusters=0 must be at least 1"):
        kmeans(torch.zeros(1, 5, 2), 0)
    with pytest.raises(ValueError, match=r"points \(1, 0, 2\) must be \(B, P, D\)"):
        kmeans(torch.zeros(1, 0, 2), 2)
    with pytest.raises(ValueError, match=r"weights \(1, 4\) must be \(B, P, D\) and \(B, P\)"):
        kmeans(torch.zeros(1, 5, 2), 2, torch.ones(1, 4))


@pytest.mark.parametrize("block", [7, 2**20])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_each_point_goes_to_the_nearest_centre_in_blocks_of_any_length(block, offset, monkeypatch):
    monkeypatch.setattr(numerics, "CACHED", block)
    points = torch.randn(2, 30, 4, generator=generator(0)) + offset
    centres = torch.randn(2, 3, 4, generator=generator(1)) + offset
    square = torch.cdist(centres.double(), points.double()).square()  # (B, K, P)
    assert torch.equal(assign(points, centres).long(), square.argmin(1))
