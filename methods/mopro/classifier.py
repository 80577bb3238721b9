"""Frame of all arms: an encoder trained on web labels, its evaluation and its audit."""

from typing import Any

import torch
from torch import Tensor

from methods.mopro.audit import audit_rule
from shared.evaluation.features import extract_features
from shared.nn.encoder import Encoder
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method
from shared.training.optim import weight_decay_groups
from shared.training.schedules import epoch_factor


class WebClassifier(Method):
    """An `Encoder` under SGD with a schedule by epochs; subclasses add `training_step`, `scores`.

    Logs `val/top1`, `val/top5`, `test/top1`, `test/top5`, and what `audit_rule` finds.

    Args:
        backbone, num_classes, projection: see `Encoder`.
        threshold: T of the correction rule. Where the truth about the web images is known
            (`WebData.truth`), evaluation audits the rule, whether or not an arm trains by it.
        lr, momentum, weight_decay: of SGD without Nesterov; the decay holds for ALL parameters.
        schedule: `{kind: steps, milestones, gamma}` or `{kind: cosine}`, constant in an epoch.
        total_epochs: E of the cosine.
        channels_last: memory layout of the network; exact, and faster on CPU and GPU.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any] | None,
        threshold: float,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        total_epochs: int,
        channels_last: bool,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, num_classes, projection)
        self.lay_out(self.encoder, channels_last)
        self.factor = epoch_factor(schedule, total_epochs)
        self.accuracies = Accuracies()

    def scores(self, images: Tensor) -> Tensor:
        """(B, K) soft labels, on which the correction rule decides."""
        raise NotImplementedError

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, _ = self.encoder(self.concatenate([batch["images"]]))
        self.accuracies.update(logits, batch["labels"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.accuracies.compute("val"))
        self.log_audit("val")

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.accuracies.compute("test"))
        self.log_audit("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, K) class probabilities."""
        return self.encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def configure_optimizers(self):
        groups = weight_decay_groups(self.encoder, self.hparams["weight_decay"])
        return self.sgd(groups, self.factor)

    def log_audit(self, split: str) -> None:
        """Log `audit_rule` of the web images whose true labels are known."""
        data: Any = getattr(self.trainer, "datamodule", None)
        loader = data.audit_dataloader(split) if hasattr(data, "audit_dataloader") else None
        if loader is None:
            return
        found = extract_features(
            lambda images: self.scores(self.concatenate([images])), loader, self.device
        )
        true_labels = torch.from_numpy(data.true_labels)[found.indices]
        values = audit_rule(found.features, found.labels, true_labels, self.hparams["threshold"])
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})
