"""Baselines from the same pieces: cross-entropy under any sampler, and ordinary mixup."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.iccl.classifier import LongTailClassifier
from methods.iccl.losses import check_mix, draw_lambda, interpolate, interpolated_cross_entropy
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
