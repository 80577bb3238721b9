"""Losses of the region classifier that SimCal is compared with.

Shapes: M regions, K classes with n (K,) training instances; label 0 is background.
Source: docs/papers/simcal.md, section 3.8.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from shared.nn.building import applied

Classify = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(counts: Tensor) -> Classify:
    """Plain cross-entropy."""
    return F.cross_entropy


def inverse_loss(
    counts: Tensor, numerator: float | None, background: float, clip: Sequence[float]
) -> Classify:
    """Cross-entropy weighted by N / n_j; a `numerator` N of None is that of a mean weight of 1."""
    return weighted(inverse_weights(counts, numerator, background, clip))


def inverse_weights(
    counts: Tensor, numerator: float | None, background: float, clip: Sequence[float]
) -> Tensor:
    """(K + 1,) weights N / n_j within `clip`, that of background in front."""
    weights = 1 / counts.to(torch.get_default_dtype())
    factor = 1 / weights.mean() if numerator is None else numerator
    return with_background(factor * weights, background, clip)


def effective_number_loss(
    counts: Tensor, beta: float, background: float, clip: Sequence[float]
) -> Classify:
    """Cross-entropy weighted by the inverse of classes' effective numbers of instances."""
    return weighted(effective_number_weights(counts, beta, background, clip))


def effective_number_weights(
    counts: Tensor, beta: float, background: float, clip: Sequence[float]
) -> Tensor:
    """(K + 1,) weights (1 - beta) / (1 - beta^n_j) over their mean, within `clip`."""
    # In float32 1 - beta^n loses three digits at n = 1.
    weights = (1 - beta) / (1 - beta ** counts.double())
    weights = (weights / weights.mean()).to(torch.get_default_dtype())
    return with_background(weights, background, clip)


def with_background(weights: Tensor, background: float, clip: Sequence[float]) -> Tensor:
    return torch.cat([weights.new_tensor([background]), weights]).clamp(*clip)


def weighted(weights: Tensor) -> Classify:
    """The loss sum_m w_{y_m} CE_m / M, which does not divide by the sum of the weights."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, weights.to(logits), reduction="sum")
        return losses / max(1, len(labels))

    return loss


def focal_loss(counts: Tensor, gamma: float, alpha: float) -> Classify:
    """Sigmoid focal loss of K logits, none of background, over the number of objects."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return sum_of_focal(logits, labels, gamma, alpha) / (labels > 0).sum().clamp(min=1)

    return loss


def sum_of_focal(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """Sigmoid focal loss of logits (M, K), in which background is the target of all zeros."""
    targets = F.one_hot(labels, logits.shape[1] + 1)[:, 1:].to(logits)
    return sigmoid_focal_loss(logits, targets, alpha, gamma, reduction="sum")


def margin_loss(counts: Tensor, largest: float) -> Classify:
    """Cross-entropy with a margin of `largest` (min n / n_j)^(1/4) off the label's logit."""
    margins = largest * (counts.clamp(min=1) / counts.clamp(min=1).min()) ** -0.25
    margins = F.pad(margins, (1, 0))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        margin = F.one_hot(labels, logits.shape[1]) * margins.to(logits)
        return F.cross_entropy(logits - margin, labels)

    return loss


KINDS: dict[str, Callable[..., Classify]] = {
    "softmax": softmax_loss,
    "inverse": inverse_loss,
    "effective_number": effective_number_loss,
    "focal": focal_loss,
    "margin": margin_loss,
}
WITHOUT_BACKGROUND = ("focal",)


def classification_loss(settings: Mapping[str, Any], counts: Tensor) -> Classify:
    """The loss of the `kind` that the settings name, with their other values, for classes with
    (K,) training instances."""
    arguments = {name: value for name, value in settings.items() if name != "kind"}
    kind = settings.get("kind")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"method.classification.kind={kind!r} is unknown; known: {known}")
    return applied(KINDS[kind], {"counts": counts, **arguments})
