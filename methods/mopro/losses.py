"""The noise-correction rule of MoPro and the losses on the rows that it keeps.

Shapes: B images, K classes. Source: docs/papers/mopro.md, sections 3.3 and 3.5;
salesforce/MoPro@155cae3 `model.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Correction:
    """What the rule makes of the web labels."""

    labels: Tensor  # (B,) int64; of a row that is not kept, the web label as a placeholder
    kept: Tensor  # (B,) bool; the others are out of distribution
    relabelled: Tensor  # (B,) bool; kept with another label than the web's


def soft_labels(logits: Tensor, prototype_logits: Tensor, alpha: float) -> Tensor:
    """(B, K) alpha softmax(o) + (1 - alpha) softmax(l): classifier and prototypes asked together;
    the prototypes' logits l are over the temperature."""
    return alpha * logits.softmax(dim=1) + (1 - alpha) * prototype_logits.softmax(dim=1)


def correct_labels(scores: Tensor, web_labels: Tensor, threshold: float) -> Correction:
    """The rule, with m the largest score of a row and g that of its web label:

        m > T      the arg max becomes the label (confidence wins over a credible web label)
        g > 1 / K  the web label is kept: it scores better than chance
        else       out of distribution

    Args: scores (B, K) soft labels, web_labels (B,) int64, threshold T.
    """
    best, arg_best = scores.max(dim=1)
    confident = best > threshold
    credible = scores.gather(1, web_labels[:, None]).squeeze(1) > 1 / scores.shape[1]
    labels = torch.where(confident, arg_best, web_labels)
    return Correction(labels, confident | credible, labels != web_labels)


def kept_cross_entropy(logits: Tensor, correction: Correction) -> Tensor:
    """Mean cross-entropy over the kept rows; 0, with zero gradients, of none (officially NaN)."""
    kept = correction.kept
    if not kept.any():
        return 0.0 * logits.sum()
    return F.cross_entropy(logits[kept], correction.labels[kept])
