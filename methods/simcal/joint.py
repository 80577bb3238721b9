"""Stage A: ordinary joint training of a detector, and the long-tailed losses that are compared with
SimCal (docs/papers/simcal.md, sections 3.1 and 3.8)."""

from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

from methods.simcal.dual_head import stage_mean
from methods.simcal.frame import Batch, LongTailDetector
from methods.simcal.losses import WITHOUT_BACKGROUND, classification_loss
from shared.nn.detection.detector import Stages
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.matching import GroundTruth, padded
from shared.tasks.detection import JointTraining, with_sizes
from shared.training.callbacks import moving_average
from shared.training.schedules import rate_factor


class JointDetector(LongTailDetector):
    """Mask R-CNN, whose softmax classifier collapses on rare classes.

    Args:
        training: see `JointTraining`.
        classification: loss of the region classifier, see `classification_loss`.
        optimizer: `sgd` or `adamw`.
        lr, momentum, weight_decay, schedule: of all parameters; see `rate_factor`.
        ema_decay: of a moving average of the weights, which is evaluated and saved; null for none.
        oracle: the test also scores regions by `oracle_scores`.
    """

    def __init__(
        self,
        training: dict[str, Any],
        classification: dict[str, Any],
        optimizer: str,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        ema_decay: float | None,
        oracle: bool,
        **common: Any,
    ):
        with_background = classification.get("kind") not in WITHOUT_BACKGROUND
        common["detector"] = {**common["detector"], "background": with_background}
        super().__init__(**common)
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"method.optimizer={optimizer!r}: expected sgd or adamw")
        rate_factor(0, schedule)
        if ema_decay is not None:
            moving_average(ema_decay)  # refuses what is no decay before anything is trained
        classification_loss(classification, torch.ones(self.detector.num_classes))
        self.joint = JointTraining(training, common["seed"])
        stages, weights = len(self.detector.box_heads), len(training["stage_weights"])
        if stages != weights:
            raise ValueError(f"method.training.stage_weights: {weights} for {stages} stages")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        classify = classification_loss(self.hparams["classification"], self.instances)
        terms = self.joint.losses(
            self.detector, with_sizes(self, batch), self.global_step, classify
        )
        return self.total_loss(terms, {}, batch["indices"])

    def score(self, stages: Stages) -> Tensor:
        logits = stage_mean(stages.logits)
        if self.hparams["detector"]["background"]:
            return logits.softmax(dim=1)
        return F.pad(logits.sigmoid(), (1, 0))

    def named_scores(self, stages: Stages, batch: Batch) -> dict[str, Tensor]:
        """With `oracle` the detections also as they were if every region knew its class."""
        scores = super().named_scores(stages, batch)
        if self.hparams["oracle"]:
            truth, geometry = padded(batch["targets"]), self.detector.geometry
            scores["oracle"] = oracle_scores(geometry, stages.rois[0], truth, scores[""])
        return scores

    def configure_callbacks(self) -> list[Callback]:
        decay = self.hparams["ema_decay"]
        return [] if decay is None else [moving_average(decay)]

    def configure_optimizers(self):
        p = self.hparams
        learnt = [parameter for parameter in self.parameters() if parameter.requires_grad]
        schedule, decay = p["schedule"], p["weight_decay"]

        def factor(t: int) -> float:
            return rate_factor(t, schedule)

        if p["optimizer"] == "sgd":
            return self.sgd(learnt, factor, schedule["every"], weight_decay=decay)
        optimizer = torch.optim.AdamW(learnt, p["lr"], weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": schedule["every"]}]


def oracle_scores(geometry: Geometry, rois: Tensor, truth: GroundTruth, scores: Tensor) -> Tensor:
    """Scores (M, K + 1) of regions whose class is taken from the ground truth (Props-GT): the
    foreground probability for the class of the object of the greatest IoU, if that is 0.5 or more,
    else background (docs/papers/simcal.md, section 7; the official code was never released)."""
    image = rois[:, 0].long()
    iou = geometry.iou(rois[:, None, 1:], truth.boxes[image])[:, 0]
    best = iou.masked_fill(~truth.valid[image], 0.0).max(dim=1)
    labels = truth.labels[image, best.indices].masked_fill(best.values < 0.5, 0)
    return torch.zeros_like(scores).scatter(1, labels[:, None], 1 - scores[:, :1])
