"""Accuracy on frequent and rare classes of a long-tailed training set.

Source: docs/papers/iccl.md, section 7, item 2; facebookresearch/classifier-balancing@f162ade
`utils.py:shot_acc`.
"""

import torch
from torch import Tensor


def class_accuracies(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C,) fraction of right predictions (N,) per class; NaN for classes without test images."""
    if predictions.shape != labels.shape:
        raise ValueError(f"{tuple(predictions.shape)} predictions, {tuple(labels.shape)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} with {num_classes} classes"
        )
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return right.double() / torch.bincount(labels, minlength=num_classes)


def shot_groups(train_counts: Tensor, many: int = 100, few: int = 20) -> Tensor:
    """(C,) group per class: 0 with more than `many` training images, 2 with fewer than `few`,
    otherwise 1; both limits are medium."""
    return torch.where(train_counts > many, 0, torch.where(train_counts < few, 2, 1))


def macro_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Unweighted mean of the accuracies of the classes that have test images, 0..1."""
    return float(class_accuracies(predictions, labels, num_classes).nanmean())


def shot_accuracy(
    predictions: Tensor, labels: Tensor, train_counts: Tensor, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Accuracies 0..1: `all` over samples; `many`, `medium`, `few` as means over their classes, of
    `train_counts` (C,) training images, that have test images, NaN of no class (0 in the public
    code)."""
    per_class = class_accuracies(predictions, labels, len(train_counts))
    if not len(labels):
        raise ValueError("no test image to measure an accuracy on")
    groups = shot_groups(train_counts, many, few)
    result = {"all": float((predictions == labels).double().mean())}
    for group, name in enumerate(("many", "medium", "few")):
        result[name] = float(per_class[groups == group].nanmean())
    return result
