"""Linear SVMs on few labelled images per class: VOC07 (multi-label) and single-label sets.

Sources: docs/papers/pcl.md, section 7.1 (salesforce/PCL@964da1f `eval_svm_voc.py`, `voc.py`);
docs/papers/mopro.md, section 7 (salesforce/MoPro@155cae3 `lowshot_svm.py`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

SHOTS = (1, 2, 4, 8, 16)


def normalise(features: Tensor) -> Tensor:
    """x / (|x| + 1e-5): (N, d) -> (N, d)."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-5)


def average_precision(targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area under the monotone precision-recall curve, over all recall points (not eleven).

    Args: targets (N,), positive if > 0; scores (N,). Equal scores rank in reversed order.
    Returns: precision (N,) and recall (N,) at each rank, and the average precision in 0..1,
        float64; recall and average precision are NaN without a positive.
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


@dataclass(frozen=True)
class LinearSVMs:
    """One linear classifier per class: weight (C, d) and bias (C,), float64."""

    weight: Tensor
    bias: Tensor

    def decision(self, features: Tensor) -> Tensor:
        """(N, d) normalised features -> (N, C) decision values, float64."""
        return features.double() @ self.weight.T + self.bias


def fit_svms(features: Tensor, labels: Tensor, cost: float = 0.5) -> LinearSVMs:
    """One binary SVM per class; positives weigh twice, and label 0 (difficult) is a negative.

    Args: features (N, d) normalised, labels (N, C) in -1/0/1, cost C of the slack.

    Raises:
        ValueError: a class whose labels are all positive or all negative.
    """
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
    svm = LinearSVC(
        C=cost,
        class_weight=class_weight,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        intercept_scaling=1.0,
        tol=1e-4,
        max_iter=2000,
        random_state=0,
    )
    with warnings.catch_warnings():
        # The protocol fixes the number of iterations, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(features.numpy(), labels.numpy())


def mean_average_precision(labels: Tensor, decision: Tensor) -> float:
    """Mean over classes in percent.

    Args: labels (N, C) in -1/0/1, 0 counted as negative; decision (N, C).

    Raises:
        ValueError: a class without a positive.
    """
    if (absent := (labels > 0).sum(dim=0) == 0).any():
        classes = absent.nonzero().flatten().tolist()
        raise ValueError(f"classes {classes} have no positive test image: precision is undefined")
    pairs = zip(labels.T, decision.T, strict=True)
    return 100 * float(torch.stack([average_precision(*pair)[2] for pair in pairs]).mean())


def sample_shots(labels: Tensor, shots: int, random: Random) -> Tensor:
    """Indices of `shots` positive images per class, class by class.

    An image with several labels can be drawn several times and stays as often. A class with fewer
    positives gives all it has. `Random(0)`, called as the official script calls it, draws the
    official samples.

    Args: labels (N, C) in -1/0/1, shots k, random is advanced.
    Returns: (at most k C,) int64.
    """
    chosen: list[int] = []
    for column in labels.T:
        positives = (column > 0).nonzero().flatten().tolist()
        random.shuffle(positives)
        chosen += positives[:shots]
    return torch.tensor(chosen, dtype=torch.long)


@dataclass(frozen=True)
class LowShotMap:
    """mAP in percent: `maps` (shots, costs, runs) float64, and of all training images `full`
    (costs,) float64, empty if not asked for."""

    shots: tuple[int, ...]
    maps: Tensor
    full: Tensor

    @property
    def reported(self) -> dict[int | str, float]:
        """Mean over runs of the best cost, for each k and "full".

        With several costs that selects on the test set, as the official script does.
        """
        means = self.maps.mean(dim=2).amax(dim=1)
        result: dict[int | str, float] = dict(zip(self.shots, means.tolist(), strict=True))
        if len(self.full):
            result["full"] = float(self.full.max())
        return result

    @property
    def deviation(self) -> dict[int, float]:
        """Population standard deviation over runs of the best cost, for each k."""
        best = self.maps.mean(dim=2).argmax(dim=1)
        deviations = self.maps.std(dim=2, correction=0)
        return {k: float(deviations[i, best[i]]) for i, k in enumerate(self.shots)}


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
    """The VOC07 protocol: SVMs on k images per class, several draws, mAP on all test images.

    Args:
        train_features (N, d), test_features (M, d): frozen, not yet normalised.
        train_labels (N, C), test_labels (M, C): 1 present, -1 absent, 0 difficult (a negative).
        shots, runs, costs: k, draws per k and cost, and C; each cost has draws of its own.
        full: fit on all training images as well.
        seed: of the draws.

    Raises:
        ValueError: a class that some draw or the test set shows on no or on every image.
    """
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
    everything = [score(slice(None), cost) for cost in costs] if full else []
    return LowShotMap(tuple(shots), maps, torch.tensor(everything, dtype=torch.float64))


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
    """Percent of test images that a multi-class linear SVM on k images per class gets right.

    Mean over `runs` draws. The draws depend on the labels and the seed alone, so that two networks
    are compared on the same images; within a run the larger k contains the smaller.

    Args:
        train_features (N, d), train_labels (N,); test_features (M, d), test_labels (M,).
        shots: images per class; a class with fewer gives all it has.
        runs, seed: number of draws and what they depend on.
        cost: C of `LinearSVC`, one against the rest.

    Raises:
        ValueError: fewer than two classes to learn from.
    """
    train, test = normalise(train_features.float()), normalise(test_features.float())
    totals = dict.fromkeys(shots, 0.0)
    for run in range(runs):
        order = _shuffled_classes(train_labels, np.random.default_rng([seed, run]))
        for k in shots:
            rows = torch.from_numpy(np.concatenate([members[:k] for members in order]))
            svm = _fit(train[rows], train_labels[rows], cost)
            right = svm.predict(test.numpy()) == test_labels.numpy()
            totals[k] += 100 * float(right.mean()) / runs
    return totals


def _shuffled_classes(labels: Tensor, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Indices of each class in random order."""
    classes = labels.unique().tolist()
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes or more; the labels hold {classes}")
    return [random.permutation(np.flatnonzero(labels.numpy() == c)) for c in classes]
