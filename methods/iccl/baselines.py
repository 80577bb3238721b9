"""Baselines from the same pieces: cross-entropy under any sampler, LDAM-DRW, ordinary mixup."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.iccl.classifier import LongTailClassifier
from methods.iccl.losses import (
    check_mix,
    draw_lambda,
    effective_weights,
    interpolate,
    interpolated_cross_entropy,
    ldam_loss,
    ldam_margins,
)
from shared.tasks.classification import Batch


class CrossEntropy(LongTailClassifier):
    """Cross-entropy without mixing: plain with one agnostic stream, re-sampling with an aware one.

    With both streams side by side it sees the images of ICCL, but does not interpolate them.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = [batch["images"]], batch["labels"]
        if "partners" in batch:
            images.append(batch["partners"])
            labels = torch.cat([labels, batch["partner_labels"]])
        logits, _ = self.encoder(self.concatenate(images))
        return self.total_loss({"ce": F.cross_entropy(logits, labels)}, {}, batch["indices"])


class LDAM(LongTailClassifier):
    """Margins that grow with rarity, on cosines, and re-weighting that is deferred (LDAM-DRW).

    The classifier has unit rows and no bias; the cosine is its product with the unit feature.

    Args:
        margin: of the rarest class, on the cosine. scale: of the logits.
        beta: of the effective numbers of images, by whose inverse the classes are weighted from
            epoch `reweighted_from` on; before, all weigh the same.
    """

    def __init__(
        self, margin: float, scale: float, beta: float, reweighted_from: int, **common: Any
    ):
        super().__init__(**common)
        if not (margin >= 0 and scale > 0 and 0 <= beta < 1):
            said = f"method.margin={margin}, scale={scale}, beta={beta}"
            raise ValueError(f"{said}: expected margin >= 0, scale > 0 and beta in [0, 1)")
        classifier: Any = self.encoder.classifier
        with torch.no_grad():
            classifier.weight.copy_(F.normalize(classifier.weight, dim=1))
            classifier.bias.zero_().requires_grad_(False)

    def cosines(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        classifier: Any = self.encoder.classifier
        features = F.normalize(self.encoder.backbone(images).float(), dim=1)
        return F.linear(features, F.normalize(classifier.weight.float(), dim=1))

    def classify(self, images: Tensor) -> Tensor:
        return self.hparams["scale"] * self.cosines(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p, labels = self.hparams, batch["labels"]
        if self.class_counts is None:
            raise ValueError("LDAM needs the number of training images of each class, of the data")
        counts = self.class_counts.to(labels.device)
        margins = ldam_margins(counts, p["margin"])
        deferred = self.current_epoch >= p["reweighted_from"]
        weights = effective_weights(counts, p["beta"] if deferred else 0.0)
        cosines = self.cosines(self.concatenate([batch["images"]]))
        loss = ldam_loss(cosines, labels, margins, weights, p["scale"])
        return self.total_loss({"ldam": loss}, {}, batch["indices"])


class Mixup(LongTailClassifier):
    """Ordinary mixup within one class-agnostic batch: cross-entropy alone, no centroids."""

    def __init__(self, mix: dict[str, Any], **common: Any):
        super().__init__(**common)
        check_mix(mix)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p, images, labels = self.hparams, batch["images"], batch["labels"]
        lam = draw_lambda(p["mix"], len(images), p["seed"], self.global_step).to(self.device)
        # The batch is in random order already, so its reversal pairs random images.
        mixed = interpolate(images, images.flip(0), lam)
        logits, _ = self.encoder(self.concatenate([mixed]))
        terms = {"ce_interp": interpolated_cross_entropy(logits, labels, labels.flip(0), lam)}
        return self.total_loss(terms, {}, batch["indices"])
