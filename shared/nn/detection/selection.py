"""From scores and boxes of regions to the detections of an image.

Shapes: B images, M regions of all of them, K classes, D detections of an image at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shared.nn.detection.geometry import Geometry

CONSIDERED = 4  # times the limit: candidates of an image that NMS begins with
MOST_PAIRS = 1 << 22  # of boxes that are compared at once


class Detections(NamedTuple):
    """Boxes (B, D, 4), scores (B, D) and labels (B, D) from 1, by falling score; what pads an
    image's own has label and score 0."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, D) whether an entry is a detection."""
        return self.labels > 0


def leading_of_each_image(
    images: Tensor, count: int, limit: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Entries that are among the first `limit` of their image, and the place (row, column) of each
    in a table (count, limit).

    Args:
        images: (M,) the row of each entry's image, of `count`; entries come best first.
    """
    order = images.sort(stable=True).indices
    per_image = torch.bincount(images, minlength=count)
    first = per_image.cumsum(0) - per_image
    image = images[order]
    rank = torch.arange(len(order), device=order.device) - first[image]
    leads = rank < limit
    return order[leads], (image[leads], rank[leads])


def highest(images: Tensor, scores: Tensor, count: int, most: int) -> Tensor:
    """(M, K) mask of scores (M, K) that are among the `most` highest of their image, (M,) of
    `count`; all that equal the last of these."""
    regions = int(torch.bincount(images, minlength=count).max())
    if regions * scores.shape[1] <= most:
        return torch.ones_like(scores, dtype=torch.bool)
    order, place = leading_of_each_image(images, count, regions)
    table = scores.new_full((count, regions, scores.shape[1]), -torch.inf)
    table[place] = scores[order]
    least = table.flatten(1).topk(most, dim=1).values[:, -1]
    return scores >= least[images, None]


def nms_within(
    geometry: Geometry, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float
) -> Tensor:
    """As `Geometry.nms`, which goes from group to group; many small ones are handled at once."""
    order = scores.argsort(descending=True, stable=True)
    _, group, sizes = groups[order].unique(return_inverse=True, return_counts=True)
    largest = int(sizes.max()) if len(sizes) else 0
    if not largest or len(sizes) * largest**2 > MOST_PAIRS:
        return geometry.nms(boxes, scores, groups, threshold)
    entry, place = leading_of_each_image(group, len(sizes), largest)
    table = boxes.new_zeros(len(sizes), largest, 4, dtype=torch.float64)
    table[place] = boxes[order[entry]].double()
    overlap = (geometry.iou(table, table) > threshold).triu(diagonal=1)
    real = torch.zeros_like(table[..., 0], dtype=torch.bool)
    real[place] = True
    overlap &= real[:, None]
    # A box goes if one that stays is above it: each round settles one more box of a group at least.
    stays, before = real, None
    while before is None or not torch.equal(stays, before):
        stays, before = real & ~(overlap & stays[..., None]).any(dim=1), stays
    return order[entry[stays[place]].sort().values]


def select(
    geometry: Geometry,
    images: Tensor,
    boxes: Tensor,
    scores: Tensor,
    count: int,
    threshold: float,
    nms: float,
    limit: int,
) -> Detections:
    """Detections after NMS within each image and class, at most `limit` of an image.

    Args:
        images: (M,) the row of each region's image, of `count`.
        boxes: (M, 1 or K + 1, 4).
        scores: (M, K + 1), background first; it is no detection, and takes part in nothing.
        threshold: scores must be greater.
    """
    candidates = scores[:, 1:] > threshold
    considered = CONSIDERED * limit
    while True:
        best = candidates & highest(images, scores[:, 1:], count, considered)
        regions, label = best.nonzero(as_tuple=True)
        label = label + 1
        score, image = scores[regions, label], images[regions]
        box = boxes[regions, label if boxes.shape[1] > 1 else 0]
        stay = nms_within(geometry, box, score, image * scores.shape[1] + label, nms)
        # Whether a box stays depends on higher scores alone; lower ones matter to images that have
        # too few boxes left.
        enough = torch.bincount(image[stay], minlength=count) >= limit
        if enough[images].logical_or((best == candidates).all(dim=1)).all():
            break
        considered *= CONSIDERED
    leading, place = leading_of_each_image(image[stay], count, limit)
    stay = stay[leading]
    detections = Detections(
        boxes.new_zeros(count, limit, 4),
        scores.new_zeros(count, limit),
        label.new_zeros(count, limit),
    )
    detections.boxes[place], detections.scores[place] = box[stay], score[stay]
    detections.labels[place] = label[stay]
    return detections
