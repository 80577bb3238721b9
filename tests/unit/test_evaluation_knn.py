"""The nearest-neighbour vote."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from shared.evaluation import knn
from shared.evaluation.knn import knn_accuracy, vote


def random(seed: int, n: int = 90, dim: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator)
    return features, torch.randint(classes, (n,), generator=generator)


def test_majority_and_its_ties() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]]).repeat(3, 1)
    labels = torch.tensor([[2, 1, 1, 0, 0], [0, 1, 1, 0, 2], [2, 2, 3, 3, 3]])
    # Row 0: 1 and 0 have two votes, 1 is nearer. Row 1: 0 and 1 tie, distances 0.5 and 0.5 + eps.
    labels[1] = torch.tensor([0, 1, 1, 2, 0])  # distances: 0 has 0.1 + 0.5, 1 has 0.2 + 0.3
    assert vote(similarity, labels, None).tolist() == [1, 1, 3]


def test_weights_are_exp_of_similarity_over_temperature() -> None:
    similarity = torch.tensor([[0.9, 0.5, 0.5]])
    labels = torch.tensor([[3, 1, 1]])
    # exp(0.9 / T) > 2 exp(0.5 / T) exactly if T < 0.4 / log 2.
    limit = 0.4 / math.log(2)
    assert vote(similarity, labels, limit - 0.001).tolist() == [3]
    assert vote(similarity, labels, limit + 0.001).tolist() == [1]
    assert vote(similarity, labels, 1e-4).tolist() == [3]  # exp(9000) would overflow


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50))
def test_weighted_vote_equals_scikit_learn(seed: int) -> None:
    (bank, labels), (queries, truth) = random(seed), random(1000 + seed, n=40)
    theirs = KNeighborsClassifier(
        n_neighbors=7,
        metric="cosine",
        weights=lambda distance: torch.exp(torch.from_numpy((1 - distance) / 0.07)).numpy(),
    ).fit(bank, labels)
    expected = 100 * theirs.score(queries, truth)
    assert knn_accuracy(bank, labels, queries, truth, 7, 0.07) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 20))
def test_only_directions_count(scale: float, seed: int) -> None:
    (bank, labels), (queries, truth) = random(seed), random(1000 + seed, n=40)
    factors = torch.rand(len(bank), 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    accuracy = knn_accuracy(bank, labels, queries, truth, 5)
    assert knn_accuracy(factors * bank, labels, scale * queries, truth, 5) == accuracy


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, truth) = random(0), random(1, n=41)
    whole = [knn_accuracy(bank, labels, queries, truth, 5, t) for t in (None, 0.1)]
    for size in (1, 10 * len(bank)):
        monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", size)
        assert [knn_accuracy(bank, labels, queries, truth, 5, t) for t in (None, 0.1)] == whole


def test_perfect_on_itself_and_percent() -> None:
    bank, labels = random(3)
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 100.0
    assert knn_accuracy(bank, labels, bank, (labels + 1) % 4, k=1) == 0.0
    # All neighbours vote: the majority class wins everywhere.
    majority = labels.bincount().argmax()
    share = 100 * float((labels == majority).float().mean())
    assert knn_accuracy(bank, labels, bank, labels, k=len(bank)) == pytest.approx(share)


def test_refusals() -> None:
    bank, labels = random(0)
    for k in (0, len(bank) + 1):
        with pytest.raises(ValueError, match=f"k = {k} neighbours"):
            knn_accuracy(bank, labels, bank, labels, k)
    with pytest.raises(ValueError, match="temperature"):
        knn_accuracy(bank, labels, bank, labels, 3, 0.0)
    with pytest.raises(ValueError, match="no queries"):
        knn_accuracy(bank, labels, bank[:0], labels[:0], 3)
