"""Contrast and matching of images and texts, and the hard negatives that link the two.

Shapes: B pairs, R reference features, C candidates for negatives. All in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.losses.contrastive import soft_target_nce


def soften(targets: Tensor, teacher_logits: Tensor, alpha: float) -> Tensor:
    """alpha softmax(teacher) + (1 - alpha) targets, (B, R): those of momentum distillation."""
    return alpha * teacher_logits.float().softmax(dim=1) + (1 - alpha) * targets


def multi_positive_targets(positives: Tensor) -> Tensor:
    """(B, R) boolean -> rows that share one among their positives."""
    positives = positives.float()
    return positives / positives.sum(dim=1, keepdim=True)


def negative_weights(logits: Tensor, positives: Tensor, floor: float = 0.0) -> Tensor:
    """(B, C) weights by which negatives are drawn, without gradient: softmax of the similarities
    plus `floor`, 0 at positives, so that rows do not sum to 1."""
    return (logits.detach().float().softmax(dim=1) + floor).masked_fill(positives, 0.0)


def draw_negatives(weights: Tensor, positives: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) one candidate per row, with probability proportional to its weight (B, C), of what is no
    positive (B, C) of it; evenly where all weights have vanished.

    The uniform numbers (B,) are one per row, so that what it draws does not depend on the others.
    """
    allowed = ~positives
    if not allowed.any(dim=1).all():
        raise ValueError("all pairs of a batch show the same image: raise batch_size")
    vanished = weights.sum(dim=1, keepdim=True) <= 0
    cumulative = torch.where(vanished, allowed.double(), weights.double()).cumsum(dim=1)
    target = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def matching_loss(logits: Tensor, pairs: int) -> Tensor:
    """Mean cross-entropy of ITM: the first `pairs` rows of (R, 2) match, the others do not."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[:pairs] = 1
    return F.cross_entropy(logits.float(), labels)


def distilled_cross_entropy(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """Mean of (1 - alpha) cross-entropy with the labels (B,) + alpha that with the softmax of the
    teacher, which no gradient reaches; logits (B, classes) (docs/papers/albef.md, section 3.9)."""
    targets = F.one_hot(labels, logits.shape[1]).float()
    if teacher_logits is not None:
        targets = soften(targets, teacher_logits.detach(), alpha)
    return soft_target_nce(logits, targets)
