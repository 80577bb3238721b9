"""Linear SVMs on few labelled images per class: VOC07 (multi-label) and single-label sets.

Sources: docs/papers/pcl.md, section 7.1 (salesforce/PCL@964da1f `eval_svm_voc.py`, `voc.py`);
docs/papers/mopro.md, section 7 (salesforce/MoPro@155cae3 `lowshot_svm.py`).
"""

import warnings
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

SHOTS = (1, 2, 4, 8, 16)


def normalise(features: Tensor) -> Tensor:
    """x / (|x| + 1e-5): (N, d) -> (N, d)."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-5)


def average_precision(targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and recall (N,) at each rank, and the area under the monotone curve of all recall
    points (not eleven) in 0..1, float64. Targets (N,) are positive if > 0; equal scores (N,) rank
    in reversed order. Recall and area are NaN without a positive.
    """
    order = torch.argsort(scores, stable=True).flip(0)
    positive = (targets[order] > 0).double()
    found = positive.cumsum(0)
    precision = found / torch.arange(1, len(order) + 1, dtype=torch.float64)
    recall = found / positive.sum()
    # From each rank on, the best precision that is still to come; counted where recall grows.
    envelope = precision.flip(0).cummax(0).values.flip(0)
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return precision, recall, (steps * envelope).sum()


class LinearSVMs(NamedTuple):
    """One linear classifier per class: weight (C, d) and bias (C,), float64."""

    weight: Tensor
    bias: Tensor

    def decision(self, features: Tensor) -> Tensor:
        """(N, d) normalised features -> (N, C) decision values, float64."""
        return features.double() @ self.weight.T + self.bias


def fit_svms(features: Tensor, labels: Tensor, cost: float = 0.5) -> LinearSVMs:
    """One binary SVM per class of normalised features (N, d) and labels (N, C) in -1/0/1; positives
    weigh twice, and 0 (difficult) is a negative."""
    weights, biases = [], []
    for number in range(labels.shape[1]):
        binary = torch.where(labels[:, number] > 0, 1, -1)
        if len(binary.unique()) < 2:
            which = "positive" if binary[0] > 0 else "negative"
            raise ValueError(f"class {number} has only {which} training images, so no SVM fits it")
        svm = _fit(features, binary, cost, class_weight={1: 2, -1: 1})
        weights.append(torch.from_numpy(svm.coef_[0]))
        biases.append(torch.tensor(svm.intercept_[0]))
    return LinearSVMs(torch.stack(weights), torch.stack(biases))


def _fit(
    features: Tensor, labels: Tensor, cost: float, class_weight: dict[int, float] | None = None
) -> LinearSVC:
    svm = LinearSVC(C=cost, class_weight=class_weight, dual=True, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        # The protocol fixes the number of iterations, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(features.numpy(), labels.numpy())


def mean_average_precision(labels: Tensor, decision: Tensor) -> float:
    """Mean over classes in percent: labels (N, C) in -1/0/1, 0 a negative; decision (N, C)."""
    if (absent := (labels > 0).sum(dim=0) == 0).any():
        classes = absent.nonzero().flatten().tolist()
        raise ValueError(f"classes {classes} have no positive test image: precision is undefined")
    pairs = zip(labels.T, decision.T, strict=True)
    return 100 * float(torch.stack([average_precision(*pair)[2] for pair in pairs]).mean())


def sample_shots(labels: Tensor, shots: int, random: Random) -> Tensor:
    """Indices of `shots` positive images per class, or all that it has, class by class, an image of
    several perhaps repeatedly; `Random(0)` draws the official ones of labels (N, C) in -1/0/1."""
    chosen: list[int] = []
    for column in labels.T:
        positives = (column > 0).nonzero().flatten().tolist()
        random.shuffle(positives)
        chosen += positives[:shots]
    return torch.tensor(chosen, dtype=torch.long)


class LowShotMap(NamedTuple):
    """mAP in percent: `maps` (shots, costs, runs) float64; `reported`, the mean over runs of the
    best cost, on the test set as in the official script, for each k and, if asked for, of all
    training images ("full"); `deviation`, the population standard deviation over its runs."""

    maps: Tensor
    reported: dict[int | str, float]
    deviation: dict[int, float]


def low_shot_map(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    shots: Sequence[int] = SHOTS,
    runs: int = 5,
    costs: Sequence[float] = (0.5,),
    full: bool = True,
    seed: int = 0,
) -> LowShotMap:
    """The VOC07 protocol: SVMs on k of `shots` images per class, several draws for each of the
    `costs`, mAP on all test images; `full` fits on all training images as well. Features (N, d),
    (M, d) are not yet normalised; labels (N, C), (M, C) are 1, -1 or 0, difficult (a negative)."""
    train, test = normalise(train_features), normalise(test_features)
    random = Random(seed)

    def score(rows: Tensor | slice, cost: float) -> float:
        svms = fit_svms(train[rows], train_labels[rows], cost)
        return mean_average_precision(test_labels, svms.decision(test))

    maps = torch.zeros(len(shots), len(costs), runs, dtype=torch.float64)
    for i, k in enumerate(shots):
        for j, cost in enumerate(costs):
            for run in range(runs):
                maps[i, j, run] = score(sample_shots(train_labels, k, random), cost)
    means = maps.mean(dim=2).amax(dim=1).tolist()
    best, deviations = maps.mean(dim=2).argmax(dim=1), maps.std(dim=2, correction=0)
    reported: dict[int | str, float] = dict(zip(shots, means, strict=True))
    if full:
        reported["full"] = max(score(slice(None), cost) for cost in costs)
    deviation = {k: float(deviations[i, best[i]]) for i, k in enumerate(shots)}
    return LowShotMap(maps, reported, deviation)


def low_shot_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    shots: Sequence[int] = SHOTS,
    runs: int = 5,
    seed: int = 0,
    cost: float = 0.5,
) -> dict[int, float]:
    """Percent of test images that a multi-class linear SVM on k images per class gets right, the
    mean over `runs` draws, of features (N, d), (M, d) and labels (N,), (M,).

    The draws depend on the labels and the seed alone, so that two networks are compared on the same
    images; within a run the larger k contains the smaller.
    """
    train, test = normalise(train_features.float()), normalise(test_features.float())
    classes = train_labels.unique().tolist()
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes or more; the labels hold {classes}")
    totals = dict.fromkeys(shots, 0.0)
    for run in range(runs):
        random = np.random.default_rng([seed, run])
        order = [random.permutation(np.flatnonzero(train_labels.numpy() == c)) for c in classes]
        for k in shots:
            rows = torch.from_numpy(np.concatenate([members[:k] for members in order]))
            svm = _fit(train[rows], train_labels[rows], cost)
            right = svm.predict(test.numpy()) == test_labels.numpy()
            totals[k] += 100 * float(right.mean()) / runs
    return totals
