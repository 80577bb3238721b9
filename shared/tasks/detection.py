"""Joint training of a two-stage detector, and what it detects in an image.

Shapes: B images, P regions of each, M regions of all, K classes; a cascade has several stages.
Source: docs/papers/simcal.md, sections 3.1, 3.6 and 5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from shared.distributed import rank
from shared.nn.building import applied
from shared.nn.detection.anchors import inside
from shared.nn.detection.detector import Detector, Stages
from shared.nn.detection.heads import of_label
from shared.nn.detection.matching import (
    IGNORED,
    Assignment,
    GroundTruth,
    Quota,
    assign,
    padded,
    sample,
    with_truth,
)
from shared.nn.detection.proposals import MOST, STDS, AnchorOutputs, rois
from shared.nn.detection.selection import Detections, select
from shared.randomness import torch_generator
from shared.training.method import Method

Classify = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AnchorSampling(Quota):
    """Which anchors are trained on: `positive` and `negative` are thresholds of the IoU, `best` the
    least with which an object claims its best anchors. The smooth L1 loss of deltas becomes linear
    at `beta`. With `inside` anchors that cross the border of their image are left out; `own_truth`
    is as of `assign`."""

    positive: float
    negative: float
    best: float
    beta: float
    inside: bool = False
    own_truth: bool = False


@dataclass(frozen=True)
class RegionSampling(Quota):
    """Which regions are trained on; the threshold of the IoU is the head's. `beta` is as of
    anchors."""

    beta: float


class JointTraining:
    """Losses of all parts of a detector on one batch (Mask R-CNN, and Cascade R-CNN's with several
    stages).

    Args:
        anchors, regions: see `AnchorSampling` and `RegionSampling`.
        stage_weights: of the losses of each stage.
        seed: of the choice of anchors and regions.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int):
        self.anchors: AnchorSampling = applied(AnchorSampling, settings["anchors"])
        self.regions: RegionSampling = applied(RegionSampling, settings["regions"])
        self.stage_weights, self.seed = settings["stage_weights"], seed

    def losses(
        self, detector: Detector, batch: Mapping[str, Any], step: int, classify: Classify
    ) -> dict[str, Tensor]:
        """Loss terms by name: `loss_rpn_class`, `loss_rpn_box`, `loss_class`, `loss_box` and, with
        masks, `loss_mask`.

        Args:
            classify: logits (M, outputs) and labels (M,), 0 for background, to the loss.
        """
        sizes, truth = batch["sizes"], padded(batch["targets"])
        maps = detector.maps(batch["images"])
        outputs = detector.rpn(maps)
        terms = self.anchor_losses(detector, outputs, truth, sizes, step)
        proposals = detector.propose(outputs, sizes, "train")

        boxes, valid = proposals.boxes, proposals.valid
        stages: list[dict[str, Tensor]] = []
        for stage, head in enumerate(detector.box_heads):
            # The ground truths are regions, too, and stand in front of the proposals.
            iou = head.positive_iou
            assignment = assign(detector.geometry, boxes, valid, truth, iou, iou, iou)
            regions, valid, assignment = with_truth(boxes, valid, assignment, truth)
            priority = self.priority(f"regions of stage {stage}", step, valid)
            chosen = sample(assignment, priority, self.regions)
            seen = rois(regions, chosen.chosen)
            labels = labels_of(assignment, truth)[chosen.chosen]
            logits, deltas = head(detector.box_features(maps, seen))
            positive = labels > 0
            truths = assignment.truths[chosen.chosen][positive]
            targets = truth.boxes[seen[positive, 0].long(), truths]
            goal = detector.geometry.encode(seen[positive, 1:], targets, head.delta_stds)
            found = of_label(deltas, labels)[positive]
            off = F.smooth_l1_loss(found, goal, reduction="sum", beta=self.regions.beta)
            losses = {"loss_class": classify(logits, labels), "loss_box": off / max(1, len(labels))}
            if len(detector.mask_heads):
                features = detector.pool(maps, seen[positive], detector.mask_resolution)
                losses["loss_mask"] = mask_loss(
                    detector, detector.mask_heads[stage](features), seen[positive], truths,
                    labels[positive], batch["targets"],
                )  # fmt: skip
            stages.append(losses)
            if stage + 1 < len(detector.box_heads):
                boxes, valid = refined(detector, head.delta_stds, seen, deltas, sizes)
        for name in stages[0]:
            parts = [w * s[name] for w, s in zip(self.stage_weights, stages, strict=True)]
            terms[name] = torch.stack(parts).sum()
        return terms

    def priority(self, purpose: str, step: int, boxes: Tensor) -> Tensor:
        """Random numbers of a step in the shape (B, P) of a mask of boxes, for this rank."""
        generator = torch_generator(self.seed, step, f"{purpose}, rank {rank()}")
        return torch.rand(boxes.shape, generator=generator).to(boxes.device)

    def anchor_losses(
        self,
        detector: Detector,
        outputs: AnchorOutputs,
        truth: GroundTruth,
        sizes: Tensor,
        step: int,
    ) -> dict[str, Tensor]:
        """The losses of the proposal network, `loss_rpn_class` and `loss_rpn_box`; `sizes` (B, 2)
        are the images' own."""
        images, settings = len(outputs.objectness), self.anchors
        anchors = outputs.anchors.expand(images, -1, -1)
        every = torch.ones_like(outputs.objectness, dtype=torch.bool)
        assignment = assign(
            detector.geometry, anchors, every, truth,
            settings.positive, settings.negative, settings.best, settings.own_truth,
        )  # fmt: skip
        if settings.inside:
            # Objects may have claimed an anchor that is then left out, and no other one.
            truths = assignment.truths.masked_fill(~inside(outputs.anchors, sizes), IGNORED)
            assignment = assignment._replace(truths=truths)
        chosen = sample(assignment, self.priority("anchors", step, every), settings)
        count = chosen.chosen.sum().clamp(min=1)
        target = chosen.positive.to(outputs.objectness)
        objectness = F.binary_cross_entropy_with_logits(
            outputs.objectness[chosen.chosen], target[chosen.chosen], reduction="sum"
        )
        image, anchor = chosen.positive.nonzero(as_tuple=True)
        goal = detector.geometry.encode(
            outputs.anchors[anchor], truth.boxes[image, assignment.truths[image, anchor]], STDS
        )
        deltas = outputs.deltas[image, anchor]
        off = F.smooth_l1_loss(deltas, goal, reduction="sum", beta=settings.beta)
        return {"loss_rpn_class": objectness / count, "loss_rpn_box": off / count}


def labels_of(assignment: Assignment, truth: GroundTruth) -> Tensor:
    """(B, P) labels of the ground truths that boxes stand for, 0 for none."""
    labels = truth.labels.gather(1, assignment.truths.clamp(min=0))
    return labels.masked_fill(assignment.truths < 0, 0)


def refined(
    detector: Detector, stds: tuple[float, ...], seen: Tensor, deltas: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """The boxes that a stage of a cascade makes of its regions `seen` (M, 5), as (B, P, 4) with
    their validity: what the next stage is trained on."""
    geometry, image = detector.geometry, seen[:, 0].long()
    boxes = geometry.decode(seen[:, 1:], deltas[:, 0].detach(), stds)
    boxes = geometry.clip(boxes, sizes[image])
    per_image = torch.bincount(image, minlength=len(sizes)).tolist()
    every = pad_sequence(list(boxes.split(per_image)), batch_first=True)
    counts = torch.tensor(per_image, device=boxes.device)
    return every, torch.arange(every.shape[1], device=boxes.device) < counts[:, None]


def mask_loss(
    detector: Detector,
    logits: Tensor,
    regions: Tensor,
    truths: Tensor,
    labels: Tensor,
    targets: list[dict[str, Tensor]],
) -> Tensor:
    """Mean binary cross-entropy of the label's mask logits (M, 1 or K + 1, 2R, 2R) with the part of
    the object's mask that lies in each positive region (M, 5)."""
    if not len(regions):
        return logits.sum() * 0
    image, boxes = regions[:, 0].long(), detector.geometry.ends(regions[:, 1:])
    goal = torch.cat(
        [
            project_masks_on_boxes(
                target["masks"], boxes[image == row], truths[image == row], logits.shape[-1]
            )
            for row, target in enumerate(targets)
        ]
    )
    return F.binary_cross_entropy_with_logits(of_label(logits, labels), goal)


@dataclass(frozen=True)
class Selection:
    """What counts as a detection: a score above `threshold`, the best of those of its class with
    an IoU above `nms`, among the `limit` best of its image."""

    threshold: float
    nms: float
    limit: int

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST:
            raise ValueError(f"selection.limit={self.limit}: from 1 to {MOST}")


class Regions(NamedTuple):
    """What a detector sees in a batch: its feature maps, and what its stages say of M proposals."""

    maps: list[Tensor]
    stages: Stages


@torch.no_grad()
def find_regions(detector: Detector, batch: Mapping[str, Any]) -> Regions:
    """The proposals of a batch by the counts of the test, seen by all stages."""
    maps, sizes = detector.maps(batch["images"]), batch["sizes"]
    rois = detector.propose(detector.rpn(maps), sizes, "test").rois()
    return Regions(maps, detector.run_stages(maps, rois, sizes))


def detections_of(
    detector: Detector,
    regions: Regions,
    batch: Mapping[str, Any],
    scores: Tensor,
    selection: Selection,
) -> Detections:
    """Detections in pixels of the original images, by scores (M, K + 1), background first."""
    images = regions.stages.rois[0][:, 0].long()
    boxes = regions.stages.boxes * zoom(batch)[images][:, None]
    return select(
        detector.geometry, images, boxes, scores, len(batch["sizes"]),
        selection.threshold, selection.nms, selection.limit,
    )  # fmt: skip


def check_corners(detector: Detector, data: Any) -> None:
    """ValueError of a data module whose boxes do not end as the detector's do."""
    inclusive = data.hparams["preparation"]["inclusive_corners"]
    if inclusive != detector.geometry.legacy:
        told = f"data.preparation.inclusive_corners={inclusive}"
        raise ValueError(f"{told}, but method.detector.legacy is not: boxes end differently")


def with_sizes(method: Method, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its images in the network's memory format and, where it has images alone,
    their sizes."""
    images = method.concatenate([batch["images"]])
    whole = torch.tensor(images.shape[-2:], device=images.device).expand(len(images), 2)
    sizes = batch.get("sizes", whole)
    original = batch.get("original_sizes", sizes)
    return {**batch, "images": images, "sizes": sizes, "original_sizes": original}


def best_of_each_class(detections: Detections, classes: int) -> Tensor:
    """(B, K) score of the best detection of each class, 0 where there is none."""
    best = detections.scores.new_zeros(len(detections.scores), classes + 1)
    return best.scatter_reduce(1, detections.labels, detections.scores, "amax")[:, 1:]


def zoom(batch: Mapping[str, Any]) -> Tensor:
    """Factors (B, 4) from pixels of the resized images to those of the original ones."""
    factors = (batch["original_sizes"].float() / batch["sizes"].float()).flip(1)
    return torch.cat([factors, factors], dim=1)


@torch.no_grad()
def detected_masks(
    detector: Detector, maps: list[Tensor], detections: Detections, batch: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """COCO's run-length encoding, in pixels of the original images, of each detection's mask."""
    from pycocotools import mask as rle

    boxes = detections.boxes / zoom(batch)[:, None]
    regions = rois(boxes, detections.valid)
    probabilities = detector.masks(maps, regions, detections.labels[detections.valid])
    per_image = detections.valid.sum(dim=1).tolist()
    original = detector.geometry.ends(detections.boxes[detections.valid]).split(per_image)
    encoded = []
    for part, box, size in zip(
        probabilities[:, None].split(per_image), original, batch["original_sizes"].tolist(),
        strict=True,
    ):  # fmt: skip
        pixels = paste_masks_in_image(part, box, tuple(size))[:, 0] >= 0.5
        columns = pixels.permute(1, 2, 0).cpu().numpy().astype("uint8", order="F")
        encoded.append(rle.encode(columns))
    return encoded
