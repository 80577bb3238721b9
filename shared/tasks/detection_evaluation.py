"""Average precision of what a detector sees, overall and by the training instances of a class.

Source: docs/papers/simcal.md, section 7.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.data.readers.instances import Instances
from shared.distributed import gather_objects
from shared.evaluation.detection import Detections, Kind, bin_means, detection_scores
from shared.evaluation.detection_recall import class_recall
from shared.nn.detection.selection import Detections as PaddedDetections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Attributes:
        edges: of the bins by training instances; bin 1 is that of fewer than `edges[0]`.
        most: detections of an image that count; None: as the benchmark says.
        masks: masks are judged, too.
        proposals: so many of an image are judged by their recall; 0: none.
    """

    edges: Sequence[int]
    most: int | None
    masks: bool
    proposals: int


class DetectionEvaluation:
    """Gathers detections of one or several names over the batches of a split, and scores them.

    Args:
        settings: see `EvaluationSettings`.
        inclusive_corners: how boxes end, see `shared.evaluation.detection`.
    """

    def __init__(self, settings: EvaluationSettings, inclusive_corners: bool):
        self.settings, self.inclusive_corners = settings, inclusive_corners
        self.detections: dict[str, list[Detections]] = defaultdict(list)
        self.proposals: dict[int, NDArray[np.float32]] = {}

    def add(
        self,
        name: str,
        image_ids: Tensor,
        detections: PaddedDetections,
        masks: Sequence[Sequence[Any]] | None,
    ) -> None:
        """Add the detections of a batch of images (B,); masks are run lengths of each image."""
        own = detections.valid
        tables = {"image_ids": image_ids[:, None].expand_as(own), **detections._asdict()}
        columns: dict[str, Any] = {key: table[own].cpu().numpy() for key, table in tables.items()}
        if masks is not None:
            columns["masks"] = [mask for image in masks for mask in image]
        self.detections[name].append(Detections(**columns))

    def add_proposals(self, image_ids: Tensor, rois: Tensor) -> None:
        """Add proposals (M, 5) in pixels of the original images, the best of each image first."""
        for row, image in enumerate(image_ids.tolist()):
            boxes = rois[rois[:, 0] == row, 1:].cpu().numpy()
            places = -np.arange(len(boxes), dtype=np.float32)[:, None]
            self.proposals[image] = np.concatenate([boxes, places], axis=1)

    def scores(self, instances: Instances, counts: NDArray[np.int64]) -> dict[str, float]:
        """Metrics in percent over all ranks, by name, `<name>_` in front; what was gathered goes.

        Args:
            instances: the annotations of the split.
            counts: (K,) training instances of each class.
        """
        gathered, proposals = self.gathered()
        values: dict[str, float] = {}
        for name, detections in gathered.items():
            prefix = f"{name}_" if name else ""
            values |= self.precision(instances, detections, counts, prefix)
        return values | (self.recall(instances, proposals, counts) if proposals else {})

    def gathered(self) -> tuple[dict[str, Detections], dict[int, NDArray[np.float32]]]:
        """Detections by name, and proposals by image, of all ranks; what was gathered goes."""
        ranks = gather_objects((dict(self.detections), self.proposals))
        self.detections, self.proposals = defaultdict(list), {}
        detections = {
            name: joined([part for found, _ in ranks for part in found[name]])
            for name in ranks[0][0]
        }
        return detections, {image: boxes for _, own in ranks for image, boxes in own.items()}

    def precision(
        self,
        instances: Instances,
        detections: Detections,
        counts: NDArray[np.int64],
        prefix: str,
    ) -> dict[str, float]:
        """AP of boxes and, with masks, of masks: overall, by size, by LVIS's groups, by bin, and
        `bAP`, the mean of the bins. What no annotation allows to measure is left out."""
        values: dict[str, float] = {}
        kinds: list[tuple[Kind, str]] = [("bbox", prefix), ("segm", f"{prefix}mask_")]
        for kind, start in kinds if self.settings.masks else kinds[:1]:
            rules = self.settings.most, self.inclusive_corners
            found = detection_scores(instances, detections, kind, *rules)
            measured = {k: v for k, v in found.metrics.items() if k in METRICS and v > -1}
            evaluated = np.where(instances.instance_counts > 0, found.class_ap, np.nan)
            bins = bin_means(evaluated, counts, self.settings.edges)
            values |= {f"{start}{name}": 100 * value for name, value in measured.items()}
            values |= by_bin(f"{start}AP", bins)
            if not np.isnan(bins).all():
                values[f"{start}bAP"] = 100 * float(np.nanmean(bins))
        return values

    def recall(
        self, instances: Instances, proposals: Mapping[int, NDArray], counts: NDArray[np.int64]
    ) -> dict[str, float]:
        """`recall` of the proposals, IoU .50 to .95, mean over classes, and of each bin."""
        last = int(self.inclusive_corners)
        corners, labels, given = [], [], []
        for number, image in enumerate(instances.image_ids.tolist()):
            own = np.arange(len(instances.ids))[instances.of_image(number)]
            own = own[instances.usable[own]]
            corners.append(instances.corners[own] - [0, 0, last, last])
            labels.append(instances.labels[own])
            given.append(proposals.get(image, np.zeros((0, 5), np.float32)))
        recalls = class_recall(
            corners, labels, given, [self.settings.proposals], len(counts), self.inclusive_corners
        )[:, 0]
        bins = bin_means(recalls, counts, self.settings.edges)
        return {"recall": 100 * float(np.nanmean(recalls)), **by_bin("recall", bins)}


def by_bin(name: str, bins: NDArray[np.float64]) -> dict[str, float]:
    """`name1`, `name2` and so on, in percent, without bins of no class."""
    values = enumerate(bins.tolist(), 1)
    return {f"{name}{number}": 100 * value for number, value in values if value == value}


def joined(parts: Sequence[Detections]) -> Detections:
    """The detections of several batches as one."""
    names = ("image_ids", "boxes", "scores", "labels")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in names
    }
    if all(part.masks is not None for part in parts):
        columns["masks"] = [mask for part in parts for mask in part.masks or ()]
    return Detections(**columns)
