"""Recall of proposals, whatever class they show.

Source: docs/papers/simcal.md, section 7; twangnh/SimCal@e5f3076
`mmdet/core/evaluation/recall.py:eval_recalls`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU


def class_recall(
    objects: Sequence[NDArray],
    labels: Sequence[NDArray[np.int64]],
    proposals: Sequence[NDArray],
    budgets: Sequence[int],
    classes: int,
    inclusive_corners: bool = False,
) -> NDArray[np.float64]:
    """Average recall of each class's objects, (classes, budgets), over the ten thresholds; NaN of a
    class without objects. Proposals are matched to the objects of one class at a time, as if there
    were no others.

    Args:
        objects: of each image (g, 4) boxes, x1, y1, x2, y2.
        labels: of each image (g,) in 1..classes.
        proposals: of each image (m, 5) boxes and scores, in any order.
        budgets: how many proposals of an image count, those of the highest scores.
        inclusive_corners: a box that ends with pixel x has x2 = x.
    """
    found: list[list[NDArray]] = [[] for _ in range(classes)]
    for boxes, own, proposed in zip(objects, labels, proposals, strict=True):
        for label in np.unique(own):
            given = [boxes[own == label]], [proposed], budgets, inclusive_corners
            found[label - 1] += best_overlaps(*given)
    missing = np.full(len(budgets), np.nan)
    rows = [recall(np.concatenate(o, axis=1)).mean(axis=1) if o else missing for o in found]
    return np.stack(rows)


def best_overlaps(
    objects: Sequence[NDArray],
    proposals: Sequence[NDArray],
    budgets: Sequence[int],
    inclusive_corners: bool = False,
) -> list[NDArray[np.float64]]:
    """Of each image the overlap (IoU) of each object with its proposal, (budgets, g), in the order
    in which they are matched: the largest overlap that is left first, each proposal once; see
    `class_recall`."""
    found = []
    for boxes, proposed in zip(objects, proposals, strict=True):
        order = np.argsort(-proposed[:, 4], kind="stable")
        overlaps = _overlaps(boxes, proposed[order, :4], int(inclusive_corners))
        found.append(np.stack([_matched(overlaps[:, :budget]) for budget in budgets]))
    return found


def _matched(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """(g,) of an overlap matrix (g, m)."""
    left = overlaps.copy()
    matched = np.zeros(len(left))
    for turn in range(min(left.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        matched[turn] = left[row, column]
        left[row], left[:, column] = -1, -1
    return matched


def _overlaps(boxes: NDArray, others: NDArray, last: int) -> NDArray[np.float64]:
    """IoU (g, m)."""
    first = np.maximum(boxes[:, None, :2], others[None, :, :2])
    second = np.minimum(boxes[:, None, 2:4], others[None, :, 2:])
    common = (second - first + last).clip(min=0).prod(axis=2).astype(np.float64)
    areas = (
        (corners[:, 2:4] - corners[:, :2] + last).prod(axis=1).astype(np.float64)
        for corners in (boxes, others)
    )
    own, theirs = areas
    return common / np.maximum(own[:, None] + theirs[None] - common, np.finfo(np.float32).tiny)


def recall(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of objects that proposals cover at IoU .50, .55, ... .95, (budgets, 10), by their
    overlaps (budgets, objects), see `best_overlaps`; NaN without objects."""
    covered = (overlaps[:, None] >= THRESHOLDS[:, None]).sum(axis=2)
    return covered / (overlaps.shape[1] or np.nan)
