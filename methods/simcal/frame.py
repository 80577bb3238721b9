"""Frame of both stages: a detector, its detections, and how they are judged on a long tail."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.data.readers.outlines import RunLengths
from shared.nn.building import applied
from shared.nn.detection.detector import Detector, Stages
from shared.nn.detection.selection import Detections
from shared.tasks.detection import (
    Selection,
    best_of_each_class,
    check_corners,
    detected_masks,
    detections_of,
    find_regions,
    with_sizes,
    zoom,
)
from shared.tasks.detection_evaluation import DetectionEvaluation, EvaluationSettings
from shared.training.method import Method

Batch = dict[str, Any]


class LongTailDetector(Method):
    """A `Detector` of K classes, some of which have few training instances; subclasses add
    `training_step` and what scores a region has.

    Args:
        detector: see `Detector`.
        selection: see `Selection`.
        evaluation: see `EvaluationSettings`.
        channels_last: memory layout of the network.
        seed: of all draws of the method itself.
    """

    accumulates = True
    instances: Tensor

    def __init__(
        self,
        detector: dict[str, Any],
        selection: dict[str, Any],
        evaluation: dict[str, Any],
        channels_last: bool,
        seed: int,
    ):
        super().__init__()
        self.save_hyperparameters()  # those of a subclass as well
        self.detector: Detector = applied(Detector, detector)
        self.selection: Selection = applied(Selection, selection)
        settings: EvaluationSettings = applied(EvaluationSettings, evaluation)
        self.evaluation = DetectionEvaluation(settings, self.detector.geometry.legacy)
        # How many training instances each class has: a part of the model, whose scores need it.
        self.register_buffer("instances", torch.zeros(self.detector.num_classes, dtype=torch.long))
        self.lay_out(self.detector, channels_last)

    def attach(self, datamodule: Any) -> None:
        """Take from the data how many training instances each class has, and for heads that know
        classes by their embedded names, these."""
        counts = torch.as_tensor(datamodule.instance_counts)
        if len(counts) != len(self.instances):
            told = f"the data have {len(counts)} classes, the detector {len(self.instances)}"
            raise ValueError(f"{told}: set method.detector.num_classes={len(counts)}")
        check_corners(self.detector, datamodule)
        self.instances.copy_(counts)
        for part in self.modules():
            if (take := getattr(part, "take_texts", None)) is not None:
                take(datamodule.texts("train"))

    def setup(self, stage: str) -> None:
        if (datamodule := getattr(self.trainer, "datamodule", None)) is not None:
            self.attach(datamodule)

    def score(self, stages: Stages) -> Tensor:
        """(M, K + 1) scores of regions, background first."""
        raise NotImplementedError

    def detect(self, batch: Batch) -> Detections:
        """What is seen in each image, in pixels of its file."""
        batch = with_sizes(self, batch)
        regions = find_regions(self.detector, batch)
        scores = self.score(regions.stages)
        return detections_of(self.detector, regions, batch, scores, self.selection)

    def detect_objects(
        self, batch: Batch, selection: Selection
    ) -> tuple[Detections, list[list[RunLengths]] | None]:
        """As `detect`, by another selection; boxes end at x2 and y2. And the masks of each image,
        None of a detector of boxes alone."""
        batch = with_sizes(self, batch)
        regions = find_regions(self.detector, batch)
        scores = self.score(regions.stages)
        found = detections_of(self.detector, regions, batch, scores, selection)
        masks = None
        if len(self.detector.mask_heads):
            masks = detected_masks(self.detector, regions.maps, found, batch)
        return found._replace(boxes=self.detector.geometry.ends(found.boxes)), masks

    def named_scores(self, stages: Stages, batch: Batch) -> dict[str, Tensor]:
        """Scores that the test compares, by name; the one that counts has none."""
        return {"": self.score(stages)}

    def evaluate(self, batch: Batch, named: Callable[[Stages, Batch], dict[str, Tensor]]) -> None:
        """Gather what is seen by each of the `named` scores."""
        batch, evaluation = with_sizes(self, batch), self.evaluation
        regions = find_regions(self.detector, batch)
        for name, scores in named(regions.stages, batch).items():
            found = detections_of(self.detector, regions, batch, scores, self.selection)
            masks = None
            if evaluation.settings.masks:
                masks = detected_masks(self.detector, regions.maps, found, batch)
            evaluation.add(name, batch["image_ids"], found, masks)
        if evaluation.settings.proposals:
            rois = regions.stages.rois[0]
            boxes = rois[:, 1:] * zoom(batch)[rois[:, 0].long()]
            evaluation.add_proposals(batch["image_ids"], torch.cat([rois[:, :1], boxes], dim=1))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, lambda stages, _: {"": self.score(stages)})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, self.named_scores)

    def log_evaluation(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        instances = data.instances(data.hparams[f"{split}_split"])
        scores = self.evaluation.scores(instances, self.instances.cpu().numpy())
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, K) score of the best detection of each class, 0 where there is none."""
        return best_of_each_class(self.detect(batch), self.detector.num_classes)
