"""k-means, exact assignment and adjusted mutual information."""

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shared.evaluation.clustering import ami, assign, kmeans


def clumps(groups: int, each: int, dim: int = 16, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Unit-norm features (N, dim) around `groups` random directions, and their groups (N,)."""
    generator = torch.Generator().manual_seed(groups)
    centres = F.normalize(torch.randn(groups, dim, generator=generator), dim=1)
    labels = torch.arange(groups).repeat(each)
    noise = spread * torch.randn(len(labels), dim, generator=generator)
    return F.normalize(centres[labels] + noise, dim=1), labels


def objective(features: Tensor, centroids: Tensor) -> float:
    return float(assign(features, centroids)[1].sum())


def test_finds_clumps_with_their_means_as_centroids() -> None:
    features, labels = clumps(4, 50)
    centroids = kmeans(features, 4, seed=0)
    ids, _ = assign(features, centroids)
    assert ami(labels, ids) == pytest.approx(1.0)
    means = torch.stack([features[ids == c].mean(dim=0) for c in range(4)])
    torch.testing.assert_close(centroids, means)
    assert (centroids.norm(dim=1) < 0.999).all()  # not normalised: not spherical k-means


def test_seed_decides_and_threads_do_not() -> None:
    features, _ = clumps(40, 20, spread=0.4)
    threads = torch.get_num_threads()
    runs = []
    for seed, count in ((0, 1), (0, 1), (0, 2), (1, 1)):
        torch.set_num_threads(count)
        runs.append(kmeans(features, 30, seed, iterations=3, restarts=1))
    torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2])
    assert not torch.allclose(runs[0], runs[3])


def test_more_iterations_and_restarts_fit_better() -> None:
    features, _ = clumps(40, 20, spread=0.4)

    def total(iterations: int, restarts: int) -> list[float]:
        runs = (kmeans(features, 30, seed, iterations, restarts) for seed in range(4))
        return [objective(features, centroids) for centroids in runs]

    short, long, best = total(1, 1), total(20, 1), total(20, 5)
    assert all(a < b for a, b in zip(long, short, strict=True))
    assert all(a <= b for a, b in zip(best, long, strict=True))  # the first restart is the run
    assert sum(best) < sum(long)


def test_trains_on_a_subset_when_points_are_plenty() -> None:
    features, _ = clumps(2, 500)
    few = kmeans(features, 2, 0, max_points_per_centroid=10)
    every = kmeans(features, 2, 0)
    assert not torch.equal(few, every)
    torch.testing.assert_close(few.sort(dim=0).values, every.sort(dim=0).values, atol=0.1, rtol=0)


def test_features_are_neither_copied_nor_changed() -> None:
    features, _ = clumps(4, 100)
    kept = features.clone()
    addresses = []
    original = faiss.Clustering.train

    def train(self, x, *rest):
        addresses.append(x.ctypes.data)
        return original(self, x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss.Clustering, "train", train)
        kmeans(features, 4, 0)
    assert addresses == [features.data_ptr()]
    assert torch.equal(features, kept)


def test_faiss_threads_are_given_back() -> None:
    before = faiss.omp_get_max_threads()
    kmeans(clumps(3, 30)[0], 3, 0)
    assert faiss.omp_get_max_threads() == before


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 9), st.integers(0, 999))
def test_assignment_is_the_nearest_centroid(n: int, k: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator)
    centroids = torch.randn(k, dim, generator=generator)
    ids, squared = assign(features, centroids)
    distances = torch.cdist(features.double(), centroids.double()) ** 2
    assert ids.dtype == torch.int64
    assert squared.dtype == torch.float32
    torch.testing.assert_close(squared.double(), distances.amin(dim=1), atol=1e-5, rtol=1e-5)
    chosen = distances.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(dim=1), atol=1e-5, rtol=1e-5)


def test_refuses_what_would_be_copied_or_makes_no_sense() -> None:
    features, _ = clumps(4, 10)
    for wrong in (features.double(), features.T, features[:, ::2], features[0]):
        with pytest.raises(ValueError, match=r"contiguous.*float32"):
            kmeans(wrong, 4, 0)
        with pytest.raises(ValueError, match=r"contiguous.*float32"):
            assign(wrong, features)
    for clusters in (0, len(features) + 1):
        with pytest.raises(ValueError, match="number of clusters"):
            kmeans(features, clusters, 0)
    with pytest.raises(ValueError, match="16 dimensions, centroids 8"):
        assign(features, features[:, :8].contiguous())
    broken = features.clone()
    broken[7, 3] = torch.nan
    with pytest.raises(ValueError, match="feature 7 is not finite"):
        kmeans(broken, 4, 0)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="faiss for GPUs is installed")
def test_gpu_without_its_faiss_names_the_remedy() -> None:
    features, _ = clumps(2, 10)
    with pytest.raises(RuntimeError, match="pip install"):
        kmeans(features, 2, 0, gpu=True)
    with pytest.raises(RuntimeError, match="pip install"):
        assign(features, features, gpu=True)


def test_ami() -> None:
    labels = torch.arange(4).repeat(25)
    assert ami(labels, (labels + 3) % 4) == pytest.approx(1.0)
    assert ami(labels, torch.zeros(100, dtype=torch.long)) == pytest.approx(0.0, abs=1e-9)
    shuffled = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert abs(ami(labels, shuffled)) < 0.1
    # Halving each class: H(labels) = log 4 = MI, H(clusters) = log 8, so that the arithmetic mean
    # of the entropies gives about 2 log 4 / (log 4 + log 8) = 0.8; the maximum would give 0.67.
    halves = 2 * labels + (torch.arange(100) >= 50)
    assert ami(labels, halves) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[100, 99\]"):
        ami(labels, labels[1:])
