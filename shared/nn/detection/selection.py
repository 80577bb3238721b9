"""From scores and boxes of regions to the detections of an image.

Shapes: B images, M regions of all of them, K classes, D detections of an image at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from shared.nn.detection.geometry import Geometry

CONSIDERED = 4  # times the limit: candidates of an image that NMS begins with
MOST_AT_ONCE = 20_000  # boxes, each of which is compared with all others


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
    least = scores.new_full((count,), -torch.inf)
    for image in range(count):
        own = scores[images == image].flatten()
        if len(own) > most:
            least[image] = own.topk(most).values[-1]
    return scores >= least[images, None]


def nms_of_groups(
    geometry: Geometry, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float
) -> Tensor:
    """As `Geometry.nms`, which goes from group to group where there are many boxes; here all groups
    are handled at once, told apart by shifting their boxes."""
    if not 0 < len(boxes) <= MOST_AT_ONCE:
        return geometry.nms(boxes, scores, groups, threshold)
    ends = geometry.ends(boxes.double())
    shift = (ends.amax() - ends.amin()).ceil() + 1  # whole pixels, so that overlaps stay exact
    return nms(ends + (groups * shift)[:, None], scores.double(), threshold)


def select(
    geometry: Geometry,
    images: Tensor,
    boxes: Tensor,
    scores: Tensor,
    count: int,
    threshold: float,
    iou: float,
    limit: int,
) -> Detections:
    """Detections after NMS within each image and class, at most `limit` of an image.

    Args:
        images: (M,) the row of each region's image, of `count`.
        boxes: (M, 1 or K + 1, 4).
        scores: (M, K + 1), background first; it is no detection, and takes part in nothing.
        threshold: scores must be greater.
        iou: of two boxes of a class with a greater one the lower score goes.
    """
    candidates = scores[:, 1:] > threshold
    considered = CONSIDERED * limit
    while True:
        best = candidates & highest(images, scores[:, 1:], count, considered)
        regions, label = best.nonzero(as_tuple=True)
        label = label + 1
        score, image = scores[regions, label], images[regions]
        box = boxes[regions, label if boxes.shape[1] > 1 else 0]
        stay = nms_of_groups(geometry, box, score, image * scores.shape[1] + label, iou)
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
