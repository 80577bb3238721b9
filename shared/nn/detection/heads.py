"""The second stage: the class, box and mask of a region.

Shapes: M regions, K classes, R the side of a region's features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor


class BoxHead(TwoMLPHead):
    """Two layers, then the class and the box of a region: (M, C, R, R) to logits (M, outputs) and
    deltas (M, 1 or K + 1, 4), of which class-agnostic boxes have one.

    Args:
        outputs: K + 1 with background first, or K for one sigmoid a class.
        class_agnostic: one box a region instead of one a class.
        delta_stds: of the deltas, see `Geometry`.
        positive_iou: with an object, from which a region is trained to be one.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        hidden: int,
        num_classes: int,
        outputs: int,
        class_agnostic: bool,
        delta_stds: Sequence[float],
        positive_iou: float,
    ):
        super().__init__(channels * resolution**2, hidden)
        self.cls_score = nn.Linear(hidden, outputs)
        self.bbox_pred = nn.Linear(hidden, 4 * (1 if class_agnostic else num_classes + 1))
        self.delta_stds, self.positive_iou = tuple(delta_stds), positive_iou
        for layer in (self.fc6, self.fc7):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

    def embed(self, features: Tensor) -> Tensor:
        """(M, C, R, R) -> (M, hidden), what both outputs see."""
        return super().forward(features)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embed(features)
        return self.cls_score(hidden).float(), self.bbox_pred(hidden).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Four convolutions and one transposed: (M, C, R, R) to logits (M, 1 or K + 1, 2R, 2R)."""

    def __init__(self, channels: int, width: int, num_classes: int, class_agnostic: bool):
        super().__init__()
        self.convs = MaskRCNNHeads(channels, [width] * 4, 1)
        self.predictor = MaskRCNNPredictor(width, width, 1 if class_agnostic else num_classes + 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.predictor(self.convs(features)).float()


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """Values (M, 1 or K + 1, ...) at each region's label (M,), or its only ones: (M, ...)."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values[torch.arange(len(values), device=values.device), labels]
