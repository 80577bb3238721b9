"""Arithmetic of boxes in the two conventions that detectors are trained with.

Shapes: a box is x1, y1, x2, y2 in pixels. In torchvision's convention x2 and y2 are where the box
ends. In the legacy one (mmdetection 1.x, Detectron) they name its last pixel, so that a box is
x2 - x1 + 1 wide; all of its arithmetic is that of boxes which end one pixel later.
Source: docs/papers/simcal.md, section 4; mmdetection's `bbox_overlaps`, `bbox2delta`, `delta2bbox`;
maskrcnn-benchmark's `BoxCoder` and `ROIAlign`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area, box_iou, roi_align

LARGEST = log(1000 / 16)  # of the deltas of width and height, in both directions
LEVEL_SIZE = 56.0  # boxes of this size and more leave the finest level when they double


@dataclass(frozen=True)
class Geometry:
    """Box arithmetic of one convention; `legacy` is the only place that tells them apart.

    Detectron shares the legacy convention with mmdetection, but pools regions from their first to
    their last pixel, in as many samples as a bin has pixels, and lets boxes shrink without bound.
    """

    legacy: bool
    detectron: bool = False

    def __post_init__(self) -> None:
        if self.detectron and not self.legacy:
            raise ValueError("detector.detectron: true goes with detector.legacy: true alone")

    def ends(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of this convention as boxes whose width is x2 - x1."""
        return boxes + boxes.new_tensor([0, 0, 1, 1]) if self.legacy else boxes

    def from_ends(self, boxes: Tensor) -> Tensor:
        """The inverse of `ends`."""
        return boxes - boxes.new_tensor([0, 0, 1, 1]) if self.legacy else boxes

    def iou(self, boxes: Tensor, others: Tensor) -> Tensor:
        """Intersection over union of (..., N, 4) with (..., M, 4), as (..., N, M); 0 for an empty
        box."""
        return box_iou(self.ends(boxes), self.ends(others)).nan_to_num(0.0)

    def encode(self, boxes: Tensor, targets: Tensor, stds: Sequence[float]) -> Tensor:
        """Deltas (..., 4) that `decode` turns from `boxes` into `targets`, over their `stds`."""
        centre, size = centre_and_size(self.ends(boxes))
        target_centre, target_size = centre_and_size(self.ends(targets))
        deltas = [(target_centre - centre) / size, (target_size / size).log()]
        return torch.cat(deltas, dim=-1) / boxes.new_tensor(stds)

    def decode(self, boxes: Tensor, deltas: Tensor, stds: Sequence[float]) -> Tensor:
        """Boxes (..., 4) moved and stretched by deltas (..., 4); sizes grow at most 62.5-fold."""
        deltas = deltas.float() * deltas.new_tensor(stds, dtype=torch.float32)
        centre, size = centre_and_size(self.ends(boxes))
        centre = centre + deltas[..., :2] * size
        least = None if self.detectron else -LARGEST
        half = deltas[..., 2:].clamp(least, LARGEST).exp() * size / 2
        return self.from_ends(torch.cat([centre - half, centre + half], dim=-1))

    def clip(self, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Boxes (..., 4) within images of height and width `sizes` (..., 2)."""
        limit = (sizes.flip(-1) - int(self.legacy)).to(boxes)
        return boxes.clamp(min=0).minimum(torch.cat([limit, limit], dim=-1))

    def nms(self, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
        """Indices, by falling score, of the (N, 4) boxes that stay when of any two of one group
        (N,) with an IoU above the threshold the lower score goes."""
        # torchvision tells groups apart by shifting their boxes, for which float32 is too coarse.
        return batched_nms(self.ends(boxes).double(), scores.double(), groups, threshold)

    def areas(self, boxes: Tensor) -> Tensor:
        """Areas (..., N) of boxes (..., N, 4)."""
        return box_area(self.ends(boxes))

    def levels(self, boxes: Tensor, count: int) -> Tensor:
        """Level (N,) of the pyramid on which each box is pooled, 0 being the finest."""
        size = self.areas(boxes).clamp(min=0).sqrt()
        return (size / LEVEL_SIZE + 1e-6).log2().floor().clamp(0, count - 1).long()

    def pool(self, features: Tensor, rois: Tensor, output: int, scale: float) -> Tensor:
        """RoIAlign: features (B, C, H, W), `scale` of a pixel in size, and rois (N, 5) that begin
        with the image's row, to (N, C, output, output); with two samples a bin and axis.

        The legacy kernel takes a pixel's feature at its corner: aligned RoIAlign, half a feature
        further.
        """
        features = features.to(rois.dtype)  # coordinates are too fine for half precision
        if self.detectron:
            return roi_align(features, rois, output, scale, sampling_ratio=0, aligned=False)
        boxes = self.ends(rois[:, 1:])
        boxes = boxes + 0.5 / scale if self.legacy else boxes
        rois = torch.cat([rois[:, :1], boxes], dim=1)
        return roi_align(features, rois, output, scale, sampling_ratio=2, aligned=self.legacy)


def centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centre x, y and width, height, (..., 2) each, of boxes that end at x2, y2."""
    first, last = boxes.chunk(2, dim=-1)
    return (first + last) / 2, last - first
