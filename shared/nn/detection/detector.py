"""Two-stage detectors in the family of Mask R-CNN, assembled from the parts of this room.

Shapes: B images, M regions, K classes, S stages (1, or more of a cascade).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.nn.building import applied, build
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.heads import BoxHead, MaskHead, of_label
from shared.nn.detection.proposals import (
    AnchorOutputs,
    Counts,
    Proposals,
    RegionProposalNetwork,
)

LARGEST = 256  # side of a region's features


class Stages(NamedTuple):
    """What the S box heads say of M regions: of each stage its `rois` (M, 5), their `features`
    (M, C, R, R) and class `logits` (M, outputs); and the last stage's `boxes` (M, 1 or K + 1, 4).
    """

    rois: list[Tensor]
    features: list[Tensor]
    logits: list[Tensor]
    boxes: Tensor


class Detector(nn.Module):
    """A backbone, its proposals, and the heads that classify, place and cut out each of them.

    Args:
        backbone: network with `strides`, `pooled_levels` and `out_channels`, see `backbones`.
        legacy, detectron: see `Geometry`.
        anchors: see `Anchors`, without geometry and strides.
        proposals: `{train: {before_nms, kept}, test: {before_nms, kept}, nms}`.
        box_head: of `BoxHead`, its `resolution` and `hidden`, and with one entry a stage
            `delta_stds` and `positive_iou`; or the `_target_` and arguments of another network
            with these attributes, of one stage, which also gets `channels`.
        mask_head: `{resolution, width}`, the former of the features; None: no masks.
        class_agnostic: one box and one mask a region instead of one a class.
        background: the class head has an output for it, the first one.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        legacy: bool,
        anchors: Mapping[str, Any],
        proposals: Mapping[str, Any],
        box_head: Mapping[str, Any],
        mask_head: Mapping[str, Any] | None,
        class_agnostic: bool,
        background: bool = True,
        detectron: bool = False,
    ):
        super().__init__()
        self.geometry = Geometry(legacy, detectron)
        self.num_classes, self.nms = num_classes, proposals["nms"]
        self.counts: dict[str, Counts] = {
            phase: applied(Counts, proposals[phase]) for phase in ("train", "test")
        }
        self.backbone: Any = build(backbone, nn.Module)
        channels: Any = self.backbone.out_channels
        rpn = {"channels": channels, "strides": self.backbone.strides, "anchors": anchors}
        self.rpn = applied(RegionProposalNetwork, {"geometry": self.geometry, **rpn})
        self.box_resolution = resolution_of(box_head, "box_head")
        if "_target_" in box_head:
            given = {name: value for name, value in box_head.items() if name != "resolution"}
            heads: list[Any] = [build({**given, "channels": channels}, nn.Module)]
        else:
            sizes = channels, self.box_resolution, box_head["hidden"], num_classes
            outputs = num_classes + background
            stages = zip(box_head["delta_stds"], box_head["positive_iou"], strict=True)
            heads = [BoxHead(*sizes, outputs, class_agnostic, s, iou) for s, iou in stages]
        if len(heads) > 1 and not class_agnostic:
            raise ValueError("method.detector: a cascade's boxes are class-agnostic")
        self.box_heads: Any = nn.ModuleList(heads)
        self.mask_heads: Any = nn.ModuleList()
        if mask_head:
            self.mask_resolution = resolution_of(mask_head, "mask_head")
            width = mask_head["width"]
            self.mask_heads.extend(
                MaskHead(channels, width, num_classes, class_agnostic) for _ in heads
            )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H_l, W_l) of all levels for images (B, 3, H, W)."""
        return list(self.backbone(images).values())

    def propose(self, outputs: AnchorOutputs, sizes: Tensor, phase: str) -> Proposals:
        """Proposals by the counts of `train` or `test`, whatever mode the network is in."""
        return self.rpn.propose(outputs, sizes, self.counts[phase], self.nms)

    def pool(self, maps: Sequence[Tensor], rois: Tensor, resolution: int) -> Tensor:
        """Features (M, C, R, R) of rois (M, 5), each from the level that its size asks for."""
        maps = maps[: self.backbone.pooled_levels]
        levels = self.geometry.levels(rois[:, 1:], len(maps))
        pooled = rois.new_zeros(len(rois), maps[0].shape[1], resolution, resolution)
        for level, (features, stride) in enumerate(zip(maps, self.backbone.strides, strict=False)):
            rows = (levels == level).nonzero()[:, 0]
            of_level = self.geometry.pool(features, rois[rows], resolution, 1 / stride)
            pooled = pooled.index_copy(0, rows, of_level)
        return pooled

    def box_features(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        return self.pool(maps, rois, self.box_resolution)

    def run_stages(self, maps: Sequence[Tensor], rois: Tensor, sizes: Tensor) -> Stages:
        """What the box heads say of rois (M, 5) in images of `sizes` (B, 2), one behind the other;
        each but the first sees the boxes of the one before."""
        image_sizes = sizes[rois[:, 0].long()]
        seen, features, logits = [], [], []
        boxes = rois[:, None, 1:]
        for head in self.box_heads:
            seen.append(rois)
            features.append(self.box_features(maps, rois))
            stage_logits, deltas = head(features[-1])
            logits.append(stage_logits)
            boxes = self.geometry.decode(rois[:, None, 1:], deltas, head.delta_stds)
            boxes = self.geometry.clip(boxes, image_sizes[:, None])
            rois = torch.cat([rois[:, :1], boxes[:, 0].detach()], dim=1)
        return Stages(seen, features, logits, boxes)

    def masks(self, maps: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Probability (M, 2R, 2R) of each pixel of rois (M, 5) to belong to an object of the label
        (M,), the mean over stages."""
        features = self.pool(maps, rois, self.mask_resolution)
        stages = [of_label(head(features), labels).sigmoid() for head in self.mask_heads]
        return torch.stack(stages).mean(dim=0)


def resolution_of(head: Mapping[str, Any], name: str) -> int:
    """The side of the features that a head takes; ValueError of one that fills memory, which no
    weight has a shape to tell."""
    if not 1 <= head["resolution"] <= LARGEST:
        told = f"detector.{name}.resolution={head['resolution']}"
        raise ValueError(f"{told}: from 1 to {LARGEST}")
    return head["resolution"]
