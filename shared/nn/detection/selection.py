"""From scores and boxes of regions to the detections of an image.

Shapes: B images, M regions of all of them, K classes, D detections of an image at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shared.nn.detection.geometry import Geometry


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
    regions, label = (scores[:, 1:] > threshold).nonzero(as_tuple=True)
    label = label + 1
    score, image = scores[regions, label], images[regions]
    box = boxes[regions, label if boxes.shape[1] > 1 else 0]
    stay = geometry.nms(box, score, image * scores.shape[1] + label, nms)
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
