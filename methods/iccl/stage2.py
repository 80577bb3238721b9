"""Stage 2 at paper scale: a classifier on augmented images, the encoder frozen
(docs/papers/iccl.md, section 3.6)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.iccl.classifier import LongTailClassifier
from shared.tasks.classification import Batch
from shared.tasks.classifier_balancing import distillation_terms


class BalancedClassifier(LongTailClassifier):
    """cRT or LWS on class-balanced batches (`data.first=cycles`); logs `test/<learnt>_...`.

    It starts from stage 1: `warm_start={kind: stage1, path: .../last.ckpt}`.

    Args:
        learnt: `crt`, a new linear classifier; or `lws`, one scale per class of the old one.
        freeze_bn: the encoder stays in evaluation mode; in the public code its statistics move.
        distillation: `{temperature, weight}` to learn from the stage-1 classifier too; null: off.
    """

    variant: ClassVar[str] = "crt"

    def __init__(
        self, learnt: str, freeze_bn: bool, distillation: dict[str, Any] | None, **common: Any
    ):
        super().__init__(**common)
        if learnt not in ("crt", "lws"):
            raise ValueError(f"method.learnt={learnt!r}: expected crt or lws")
        self.variant = learnt  # type: ignore[misc]  # names the metrics of this run
        classifier: Any = self.encoder.classifier
        self.encoder.backbone.requires_grad_(False)
        self.teacher: nn.Linear | None = None
        self.scales: nn.Parameter | None = None
        if distillation is not None:
            self.teacher = nn.Linear(classifier.in_features, classifier.out_features)
            self.teacher.requires_grad_(False)
        if learnt == "lws":
            classifier.requires_grad_(False)
            self.scales = nn.Parameter(torch.ones(classifier.out_features))
        self.train()

    def train(self, mode: bool = True) -> "BalancedClassifier":
        super().train(mode)
        if self.hparams["freeze_bn"]:
            self.encoder.backbone.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            features = self.encoder.backbone(self.concatenate([batch["images"]]))
            taught = self.teacher(features) if self.teacher is not None else None
        logits, settings = self.classify_features(features), self.hparams["distillation"]
        terms, weights = distillation_terms(logits, batch["labels"], taught, settings)
        return self.total_loss(terms, weights, batch["indices"])

    def classify_features(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K): W v + b, and with LWS its product with the scales."""
        classifier: Any = self.encoder.classifier
        logits = classifier(features).float()
        return logits if self.scales is None else self.scales * logits

    def classify(self, images: Tensor) -> Tensor:
        return self.classify_features(self.encoder.backbone(images))
