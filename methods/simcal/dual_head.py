"""Dual-head inference (docs/papers/simcal.md, sections 3.6 and 3.7).

Shapes: M regions, K classes with n (K,) training instances, S stages of a cascade.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

COMBINATIONS = ("original", "calibrated", "dual", "mean")


def stage_mean(logits: Sequence[Tensor]) -> Tensor:
    """The stages' mean logits: (M, K + 1) of one family of heads."""
    return torch.stack(list(logits)).mean(dim=0)


def combine(
    original: Tensor,
    calibrated: Tensor,
    counts: Tensor,
    threshold: float,
    combination: str,
    least: int = 0,
) -> Tensor:
    """Scores (M, K + 1) of two families of heads, whose logits have that shape, too.

    `dual` takes a class from the calibrated heads if it has fewer than `threshold` training
    instances, but not fewer than `least`, the background always from the original ones; rows do not
    sum to 1. `mean` is the mean of both, `original` and `calibrated` are one family alone.
    """
    s, q = original.softmax(dim=1), calibrated.softmax(dim=1)
    if combination == "dual":
        rare = F.pad((counts >= least) & (counts < threshold), (1, 0), value=False)
        return torch.where(rare, q, s)
    return {"original": s, "calibrated": q, "mean": (s + q) / 2}[combination]
