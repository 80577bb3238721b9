"""Weakly supervised grounding: which proposed box holds most of an expression's map.

Shapes: P proposals, boxes [x, y, width, height] in pixels, maps (g, g) on the grid of patches.
Source: docs/papers/albef.md, section 7; salesforce/ALBEF@b9727e4 `dataset/utils.py:grounding_eval`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CORRECT = 0.5  # least IoU with the box that the expression refers to
AREA_EXPONENT = 0.5


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., g, g) at the size (H, W) of their image, bicubic, align_corners=False."""
    planes = maps.reshape(1, -1, *maps.shape[-2:])
    planes = F.interpolate(planes, size, mode="bicubic", align_corners=False)
    return planes.reshape(*maps.shape[:-2], *size)


def box_scores(heat: Tensor, boxes: Tensor) -> Tensor:
    """(P,) float64: sum of `heat` (H, W) inside each of `boxes` (P, 4) over the root of its area.
    Rows int(y) to int(y + h) and columns int(x) to int(x + w), the last excluded, are inside."""
    height, width = heat.shape
    boxes = boxes.to(heat.device, torch.float64)
    x, y, w, h = boxes.unbind(dim=1)
    # Sums over all rectangles from the corner, so that each box costs four look-ups.
    table = F.pad(heat.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    top, bottom = (edge.long().clamp(0, height) for edge in (y, y + h))
    left, right = (edge.long().clamp(0, width) for edge in (x, x + w))
    inside = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return inside / (w * h).clamp(min=1e-12) ** AREA_EXPONENT


def choose_box(heat: Tensor, boxes: Tensor) -> tuple[int, float]:
    """The proposal with the highest score, the first of equal ones, and its score, even if that is
    not above 0, where the official code keeps the box of the expression before."""
    if len(boxes) == 0:
        raise ValueError("no proposal to choose from")
    scores = box_scores(heat, boxes).cpu().numpy()
    if not np.isfinite(scores).all():
        raise ValueError("the map of an expression is not finite: have the weights diverged?")
    best = int(scores.argmax())
    return best, float(scores[best])


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two boxes as REFER counts it: the sides of the intersection must exceed one pixel."""
    width, height = (
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)
    )
    common = width * height if width > 1 and height > 1 else 0.0
    return common / (one[2] * one[3] + other[2] * other[3] - common)


class Grounded(NamedTuple):
    """The chosen proposal, its score, and its IoU with the box that was meant."""

    proposal: int
    score: float
    iou: float


def ground(
    cam: Tensor, size: tuple[int, int], proposals: Tensor, referred: Sequence[float]
) -> Grounded:
    """Grounds one expression by its map (g, g) in an image of height and width `size`."""
    best, score = choose_box(upsample(cam.float(), size), proposals)
    return Grounded(best, score, iou(proposals[best].tolist(), referred))


def accuracies(ious: Iterable[float], splits: Iterable[str]) -> dict[str, float]:
    """`<split>_d`: the fraction of the split's expressions whose IoU is at least a half."""
    correct: dict[str, list[bool]] = defaultdict(list)
    for value, split in zip(ious, splits, strict=True):
        correct[f"{split}_d"].append(value >= CORRECT)
    return {name: float(np.mean(hits)) for name, hits in correct.items()}
