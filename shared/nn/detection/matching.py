"""Which ground truth each box stands for, and which boxes are trained on.

Shapes: B images, P boxes and G ground truths of each, padded; what is padding is not `valid`. All
images are handled at once. Source: docs/papers/simcal.md, section 3.3; mmdetection's
`MaxIoUAssigner` and `RandomSampler`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from shared.nn.detection.geometry import Geometry

IGNORED, BACKGROUND = -2, -1  # of `Assignment.truths`


class GroundTruth(NamedTuple):
    """Annotated objects: boxes (B, G, 4), labels (B, G) from 1, and whether they are no padding; G
    is 1 at least."""

    boxes: Tensor
    labels: Tensor
    valid: Tensor


def padded(targets: Sequence[dict[str, Tensor]]) -> GroundTruth:
    """The ground truth of B images, each with `boxes` (G_i, 4) and `labels` (G_i,) from 1."""
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    if labels.shape[1] == 0:  # no image has any
        boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))
    return GroundTruth(boxes, labels, labels > 0)


class Assignment(NamedTuple):
    """For each box: the ground truth that it stands for, (B, P), or `BACKGROUND` or `IGNORED`; and
    its greatest IoU with any, (B, P)."""

    truths: Tensor
    overlaps: Tensor


def assign(
    geometry: Geometry,
    boxes: Tensor,
    valid: Tensor,
    truth: GroundTruth,
    positive: float,
    negative: float,
    best: float,
    own_truth: bool = False,
) -> Assignment:
    """Assign each valid box the ground truth of its greatest IoU, if that is `positive` or more.

    Each ground truth also claims the boxes that share its own greatest IoU, if that is `best` or
    more; where several claim one, the last has it. With `own_truth` a claimed box stands for the
    ground truth of its own greatest IoU instead, whoever claims it (maskrcnn-benchmark's
    `Matcher`). Boxes below `negative` are background, the rest is ignored.
    """
    pairs = valid[:, :, None] & truth.valid[:, None]
    iou = geometry.iou(boxes, truth.boxes).masked_fill(~pairs, -1.0)
    overlaps, nearest = iou.max(dim=2)
    truths = torch.full_like(nearest, IGNORED)
    truths[overlaps < negative] = BACKGROUND
    truths = torch.where(overlaps >= positive, nearest, truths)

    greatest = iou.amax(dim=1, keepdim=True)
    claimed = (iou == greatest) & (greatest >= best) & pairs
    places = torch.arange(1, iou.shape[2] + 1, device=iou.device)
    last = (claimed * places).amax(dim=2) - 1
    truths = torch.where(last >= 0, nearest if own_truth else last, truths)
    return Assignment(truths.masked_fill(~valid, IGNORED), overlaps.clamp(min=0))


def with_truth(
    boxes: Tensor, valid: Tensor, assignment: Assignment, truth: GroundTruth
) -> tuple[Tensor, Tensor, Assignment]:
    """Boxes, their validity and assignment, with the ground truths in front of each image's."""
    own = torch.arange(truth.valid.shape[1], device=boxes.device).expand_as(truth.valid)
    truths = torch.cat([own.masked_fill(~truth.valid, IGNORED), assignment.truths], dim=1)
    overlaps = torch.cat([truth.valid.to(assignment.overlaps), assignment.overlaps], dim=1)
    boxes = torch.cat([truth.boxes, boxes], dim=1)
    return boxes, torch.cat([truth.valid, valid], dim=1), Assignment(truths, overlaps)


def first_by(priority: Tensor, candidates: Tensor, quota: Tensor | int) -> Tensor:
    """Mask (B, P) of the `quota`, a number or (B,), candidates of each image whose priority (B, P)
    is least."""
    ranked = priority.masked_fill(~candidates, torch.inf).argsort(dim=1)
    places = torch.empty_like(ranked)
    ranks = torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
    places.scatter_(1, ranked, ranks)
    limit = quota[:, None] if isinstance(quota, Tensor) else quota
    return candidates & (places < limit)


class Sample(NamedTuple):
    """Boxes to train on: masks (B, P) of positives and of negatives."""

    positive: Tensor
    negative: Tensor

    @property
    def chosen(self) -> Tensor:
        return self.positive | self.negative


@dataclass(frozen=True)
class Quota:
    """How many boxes of an image are trained on: at most `count`, of which at most a fraction are
    positives. Negatives fill up what these leave, but only those count that overlap some object by
    `negative_iou_low` or more. Nothing is repeated when there are too few."""

    count: int
    positive_fraction: float
    negative_iou_low: float


def sample(assignment: Assignment, priority: Tensor, quota: Quota) -> Sample:
    """Choose boxes of each image to train on.

    Args:
        priority: (B, P) random numbers; the least are chosen, apart for positives and negatives.
    """
    positive = assignment.truths >= 0
    positive = first_by(priority, positive, int(quota.count * quota.positive_fraction))
    background = assignment.truths == BACKGROUND
    background &= assignment.overlaps >= quota.negative_iou_low
    return Sample(positive, first_by(priority, background, quota.count - positive.sum(dim=1)))
