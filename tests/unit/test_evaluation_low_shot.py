"""The low-shot SVM protocols: average precision, draws, classifiers, aggregation."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from shared.evaluation import low_shot
from shared.evaluation.low_shot import (
    average_precision,
    fit_svms,
    low_shot_accuracy,
    low_shot_map,
    mean_average_precision,
    normalise,
    sample_shots,
)


def multi_label(n: int, seed: int = 0, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Features (n, 8) from which linear classifiers can tell most labels (n, classes)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.where(torch.rand(n, classes, generator=generator) < 0.25, 1, -1)
    labels[:classes].fill_diagonal_(1)
    directions = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    noise = 0.5 * torch.randn(n, 8, generator=generator)
    return labels.float() @ directions + noise, labels


def single_label(n: int, seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 0.5 * torch.randn(n, 8, generator=generator), labels


def test_average_precision_by_hand() -> None:
    # Ranks: + - - + +, so that precision is 1, 1/2, 1/3, 2/4, 3/5. The envelope lifts rank 4 to
    # 3/5; the area is (1 + 3/5 + 3/5) / 3, and would be (1 + 1/2 + 3/5) / 3 without it.
    scores = torch.tensor([0.5, 0.9, 0.7, 0.3, 0.1])
    targets = torch.tensor([-1, 1, 0, 1, 1])
    precision, recall, area = average_precision(targets, scores)
    torch.testing.assert_close(precision, torch.tensor([1, 1 / 2, 1 / 3, 2 / 4, 3 / 5]).double())
    torch.testing.assert_close(recall, torch.tensor([1, 1, 1, 2, 3]).double() / 3)
    assert area.item() == pytest.approx(2.2 / 3)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 999))
def test_average_precision_bounds(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (n,), generator=generator)
    targets[0] = 1
    scores = torch.randperm(n, generator=generator).float()
    area = float(average_precision(targets, scores)[2])
    plain = average_precision_score(targets.numpy() > 0, scores.numpy())
    assert plain - 1e-9 <= area <= 1 + 1e-9  # the envelope only lifts
    perfect = average_precision(targets, (targets > 0).float())[2]
    assert float(perfect) == pytest.approx(1.0)


def test_no_positive_has_no_precision() -> None:
    assert average_precision(torch.tensor([0, -1]), torch.tensor([1.0, 2.0]))[2].isnan()
    with pytest.raises(ValueError, match=r"classes \[1\] have no positive"):
        mean_average_precision(torch.tensor([[1, 0], [1, -1]]), torch.zeros(2, 2))


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(0, 999))
def test_draws_are_positives_class_by_class(shots: int, seed: int) -> None:
    labels = multi_label(30, seed)[1]
    labels[::5, 0] = 0
    drawn = sample_shots(labels, shots, Random(seed)).tolist()
    for number, column in enumerate(labels.T):
        size = min(shots, int((column > 0).sum()))
        of_class, drawn = drawn[:size], drawn[size:]
        assert len(set(of_class)) == size, number
        assert all(column[i] == 1 for i in of_class), number
    assert not drawn


def test_draws_keep_images_that_several_classes_chose_and_advance_the_generator() -> None:
    labels = torch.tensor([[1, 1], [-1, 1], [1, -1]])
    assert sample_shots(labels[:1], 5, Random(0)).tolist() == [0, 0]
    random = Random(0)
    draws = {tuple(sample_shots(multi_label(60)[1], 4, random).tolist()) for _ in range(5)}
    assert len(draws) == 5


def test_svms_minimise_the_weighted_squared_hinge() -> None:
    """At the optimum the gradient of |w|^2/2 + b^2/2 + C sum_i c_i hinge_i^2 vanishes."""
    features, labels = multi_label(80)
    x, y, number = normalise(features).double(), labels[:, 1].double(), 1
    svms = fit_svms(normalise(features), labels, cost=0.5)

    def gradient(cost: float, positive: float) -> float:
        w = svms.weight[number].clone().requires_grad_()
        b = svms.bias[number].clone().requires_grad_()
        hinge = (1 - y * (x @ w + b)).clamp_min(0)
        slack = (torch.where(y > 0, positive, 1.0) * hinge**2).sum()
        parts = torch.autograd.grad(0.5 * (w @ w + b**2) + cost * slack, (w, b))
        return max(float(part.abs().max()) for part in parts)

    assert gradient(0.5, 2.0) < 0.01
    assert gradient(0.5, 1.0) > 0.1
    assert gradient(1.0, 2.0) > 0.1


def test_class_with_one_kind_of_label_is_named() -> None:
    features, labels = multi_label(20)
    labels[:, 2] = -1
    with pytest.raises(ValueError, match="class 2 has only negative"):
        fit_svms(features, labels)
    with pytest.raises(ValueError, match="class 0 has only positive"):
        fit_svms(features, labels.abs())


def test_more_shots_help_and_full_helps_most() -> None:
    train, test = multi_label(120, 0), multi_label(120, 1)
    result = low_shot_map(*train, *test, shots=(1, 16), runs=3)
    assert result.maps.shape == (2, 1, 3)
    assert 40 < result.reported[1] < result.reported[16] < result.reported["full"] <= 100
    assert result.deviation[1] == pytest.approx(float(result.maps[0, 0].std(correction=0)))
    again = low_shot_map(*train, *test, shots=(1, 16), runs=3)
    assert torch.equal(again.maps, result.maps)
    part = low_shot_map(*train, *test, shots=(1,), runs=1, full=False, seed=1)
    assert part.reported.keys() == {1}


def test_single_label_accuracy() -> None:
    train, test = single_label(200), single_label(200, 1)
    accuracy = low_shot_accuracy(*train, *test, shots=(1, 4, 16), runs=3, seed=0)
    assert list(accuracy) == [1, 4, 16]
    assert 30 < accuracy[1] < accuracy[16] <= 100
    assert accuracy == low_shot_accuracy(*train, *test, shots=(1, 4, 16), runs=3, seed=0)
    assert accuracy != low_shot_accuracy(*train, *test, shots=(1, 4, 16), runs=3, seed=1)
    wrong = low_shot_accuracy(*train, test[0], (test[1] + 1) % 4, shots=(16,), runs=1)
    assert wrong[16] < 25


def test_draws_depend_on_seed_and_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks are compared on the same images, and larger k contain the smaller."""
    drawn: list[set[tuple]] = []
    original = low_shot._fit

    def fit(features: Tensor, labels: Tensor, *rest):
        rows = {tuple(row) for row in features.tolist()}
        drawn.append({rows_of[row] for row in rows})
        return original(features, labels, *rest)

    monkeypatch.setattr(low_shot, "_fit", fit)
    features, labels = single_label(100)
    for scale in (1.0, -2.0):
        rows_of = {tuple(row): i for i, row in enumerate(normalise(scale * features).tolist())}
        low_shot_accuracy(scale * features, labels, features, labels, (1, 4), runs=2, seed=5)
    first, second = drawn[:4], drawn[4:]
    assert first == second
    assert first[0] < first[1]
    assert first[1] != first[3]
    assert [len(rows) for rows in first] == [4, 16, 4, 16]


def test_classes_with_few_images_give_all() -> None:
    features, labels = single_label(40)
    rare = torch.cat([(labels > 0).nonzero().flatten(), (labels == 0).nonzero().flatten()[:2]])
    accuracy = low_shot_accuracy(features[rare], labels[rare], features, labels, (16,), runs=1)
    assert accuracy[16] > 50
    with pytest.raises(ValueError, match=r"two classes or more; the labels hold \[0\]"):
        low_shot_accuracy(features, 0 * labels, features, labels)
