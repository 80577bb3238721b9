"""PB-OVD's detector, trained on pseudo boxes of many classes or on people's boxes of few.

Shapes: B images, M regions, K classes, D the width of the texts' embeddings. Where the parts of
`shared` say logits, they hand on the embeddings (M, D) of regions, which become logits here.
Source: docs/papers/pb_ovd.md, sections 3.6 to 3.11; salesforce/PB-OVD@f62bdfc
`maskrcnn_benchmark/modeling`, `engine/trainer.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from methods.pb_ovd.losses import text_logits, weighted_cross_entropy
from methods.pb_ovd.texts import embedder
from shared.evaluation.detection import DetectionScores, detection_scores
from shared.nn.building import applied
from shared.nn.detection.detector import Detector
from shared.nn.detection.selection import Detections, select
from shared.tasks.detection import (
    JointTraining,
    Selection,
    best_of_each_class,
    check_corners,
    find_regions,
    with_sizes,
    zoom,
)
from shared.tasks.detection_evaluation import METRICS, DetectionEvaluation, EvaluationSettings
from shared.training.method import Method
from shared.training.schedules import steps

Batch = dict[str, Any]
BOXES_ALONE = EvaluationSettings(edges=(), most=None, masks=False, proposals=0)
NAMES = {"seen": "base", "unseen": "novel"}  # of the splits of classes in annotation files


class Ramp(NamedTuple):
    """The rate rises linearly from `start` of itself over `warm_up` steps, and falls by `gamma` at
    each of the milestones."""

    warm_up: int
    start: float
    milestones: list[int]
    gamma: float

    def factor(self, step: int) -> float:
        """The rate's factor at a step, counted from 0."""
        done = min(1.0, step / self.warm_up) if self.warm_up else 1.0
        risen = self.start * (1 - done) + done
        return risen * steps(step, self.milestones, self.gamma)


class OpenVocabularyDetector(Method):
    """Faster R-CNN whose classifier is a matrix of embedded class names, another one in each set.

    The matrix of the training classes is part of the model, `texts` (K + 1, D); those of other
    sets come from the data.

    Args:
        detector: see `Detector`; its box head is a `RegionEmbedder`.
        training: see `JointTraining`.
        background_weight: of regions without an object in the loss of classes.
        freeze_embedding: the layer that embeds regions keeps the weights that it starts with.
        selection: see `Selection`.
        lr, momentum, weight_decay: of SGD; biases learn at twice the rate and do not decay.
        schedule: see `Ramp`.
        channels_last: memory layout of the network.
        seed: of the choice of anchors and regions.
    """

    accumulates = True
    texts: Tensor

    def __init__(
        self,
        detector: dict[str, Any],
        training: dict[str, Any],
        background_weight: float,
        freeze_embedding: bool,
        selection: dict[str, Any],
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        channels_last: bool,
        seed: int,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.detector: Detector = applied(Detector, detector)
        self.joint = JointTraining(training, seed)
        self.ramp: Ramp = applied(Ramp, schedule)
        self.selection: Selection = applied(Selection, selection)
        self.evaluation = DetectionEvaluation(BOXES_ALONE, self.detector.geometry.legacy)
        embedding = self.detector.box_heads[0].emb_pred
        embedding.requires_grad_(not freeze_embedding)
        size = self.detector.num_classes + 1, embedding.out_features
        self.register_buffer("texts", torch.zeros(size))
        self.lay_out(self.detector, channels_last)

    def attach(self, datamodule: Any) -> None:
        """Take the embedded names of the training classes."""
        texts = datamodule.texts("train")
        if texts.shape != self.texts.shape:
            (rows, dim), keys = texts.shape, "method.detector.num_classes and .box_head.dim"
            told = f"the data have {rows - 1} classes, their embeddings {dim} numbers"
            raise ValueError(f"{told}: set {keys} to them")
        self.texts.copy_(texts)

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        check_corners(self.detector, data)
        if stage == "fit":
            self.attach(data)
        split = data.hparams["test_split" if stage == "test" else "val_split"]
        dim, own = data.texts(split).shape[1], self.texts.shape[1]
        if dim != own:
            raise ValueError(f"the texts of {split} have {dim} numbers, those of the model {own}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch = with_sizes(self, batch)
        terms = self.joint.losses(self.detector, batch, self.global_step, self.classify)
        return self.total_loss(terms, {}, batch["indices"])

    def classify(self, regions: Tensor, labels: Tensor) -> Tensor:
        """The loss of embedded regions (M, D) whose labels are (M,), 0 for background."""
        logits = text_logits(regions, self.texts)
        return weighted_cross_entropy(logits, labels, self.hparams["background_weight"])

    def configure_optimizers(self):
        p = self.hparams
        learnt = [(name, q) for name, q in self.named_parameters() if q.requires_grad]
        weights = [q for name, q in learnt if "bias" not in name]
        biases = [q for name, q in learnt if "bias" in name]
        groups = [
            {"params": weights, "weight_decay": p["weight_decay"]},
            {"params": biases, "weight_decay": 0.0, "lr": 2 * p["lr"]},
        ]
        return self.sgd(groups, self.ramp.factor, "step")

    def detect(self, batch: Batch, texts: Tensor, selection: Selection | None = None) -> Detections:
        """What is seen in each image of the classes that `texts` (K + 1, D) name, in pixels of its
        file, by default by the selection of the test."""
        batch = with_sizes(self, batch)
        stages = find_regions(self.detector, batch).stages
        scores = text_logits(stages.logits[0], texts).softmax(dim=1)
        chosen = selection or self.selection
        # Before boxes are resized, which changes the overlap of boxes that count their last pixel.
        detections = select(
            self.detector.geometry, stages.rois[0][:, 0].long(), stages.boxes, scores,
            len(batch["sizes"]), chosen.threshold, chosen.nms, chosen.limit,
        )  # fmt: skip
        return detections._replace(boxes=detections.boxes * zoom(batch)[:, None])

    def detect_objects(self, batch: Batch, selection: Selection) -> tuple[Detections, None]:
        """As `detect`, of the classes that were named last; boxes end at x2 and y2, no masks."""
        found = self.detect(batch, self.texts, selection)
        return found._replace(boxes=self.detector.geometry.ends(found.boxes)), None

    def open_texts(self, source: str | None, known: Sequence[str]) -> None:
        """Say where names are embedded, see `embedder`; `known` are those of the training, or none
        of an official checkpoint, which has no texts."""
        vectors = dict(zip(known, self.texts[1:], strict=False))
        self.embed = embedder(source, vectors, self.texts.shape[1])

    def name_classes(self, names: Sequence[str]) -> None:
        """Detect the classes of these names from now on. PredictError of one without embedding."""
        self.texts = F.pad(self.embed(names).to(self.texts), (0, 0, 1, 0))
        self.detector.num_classes = len(names)

    def evaluate(self, batch: Batch, split: str) -> None:
        """Gather what is seen of the classes of a split."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        texts = data.texts(data.hparams[f"{split}_split"])
        detections = self.detect(batch, texts.to(self.device))
        self.evaluation.add("", batch["image_ids"], detections, None)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def log_evaluation(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        name = data.hparams[f"{split}_split"]
        instances, last = data.instances(name), self.detector.geometry.legacy
        detections = self.evaluation.gathered()[0][""]
        found = detection_scores(instances, detections, inclusive_corners=last)
        values = measured(found, data.class_splits(name))
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, K) score of the best detection of each training class, 0 where there is none."""
        return best_of_each_class(self.detect(batch, self.texts), self.detector.num_classes)


def measured(scores: DetectionScores, splits: NDArray[np.str_]) -> Mapping[str, float]:
    """Metrics in percent, what no annotation allows to measure left out: AP overall and by size,
    and `AP50_base` and `AP50_novel`, the means over the classes of `splits` (K,)."""
    values = {n: v for n, v in scores.metrics.items() if n in METRICS and v > -1}
    for split, name in NAMES.items():
        if not np.isnan(of_split := scores.class_ap50[splits == split]).all():
            values[f"AP50_{name}"] = float(np.nanmean(of_split))
    return {name: 100 * value for name, value in values.items()}
