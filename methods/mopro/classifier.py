"""Frame of all arms: an encoder trained on web labels (K classes), its evaluation, its audit."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from methods.mopro.losses import correct_labels
from shared.evaluation.features import extract_features
from shared.nn.encoder import Encoder
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method
from shared.training.optim import weight_decay_groups
from shared.training.schedules import epoch_factor


class WebClassifier(Method):
    """An `Encoder` under SGD with a schedule by epochs; subclasses add `training_step`, `scores`.

    Logs `val/top1`, `val/top5`, `test/top1`, `test/top5`, and, where the truth about the web images
    is known (`WebData.truth`), what `audit_rule` finds, whether or not an arm trains by the rule.

    Args:
        threshold: T of the correction rule.
        lr, momentum, weight_decay: of SGD without Nesterov; the decay holds for ALL parameters.
        schedule, total_epochs: see `epoch_factor`; constant in an epoch.
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
        self.save_hyperparameters()  # those of a subclass as well
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

    def log_evaluation(self, split: str) -> None:
        self.log_dict(self.accuracies.compute(split))
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

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, K) class probabilities."""
        return self.encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def configure_optimizers(self):
        groups = weight_decay_groups(self.encoder, self.hparams["weight_decay"])
        return self.sgd(groups, self.factor)


def audit_rule(
    scores: Tensor, web_labels: Tensor, true_labels: Tensor, threshold: float
) -> dict[str, float]:
    """Percentages by name, but for shares of nothing: how right the rule is, whom it keeps.

    Args: scores (n, K) soft labels; true_labels (n,), -1 if out of distribution (OOD).

    Returns:
        kept_in, kept_out: kept images among those in and out of distribution.
        relabel_precision: relabelled images whose new label is true (an OOD image has none).
        relabel_recall: wrongly labelled images in distribution that got their true label.
        label_accuracy: kept images in distribution whose corrected label is true.
        ood_precision: images dropped that are OOD (`100 - kept_out` is the recall).
        ood_auroc: how well a low score of the web label tells OOD images; chance is 50.
        ood_auroc_max: the same with the largest score of any class.
    """
    rule = correct_labels(scores, web_labels, threshold)
    ood, kept = true_labels < 0, rule.kept
    right = rule.labels == true_labels
    shares = {
        "kept_in": (kept, ~ood),
        "kept_out": (kept, ood),
        "relabel_precision": (right, rule.relabelled),
        "relabel_recall": (right, ~ood & (web_labels != true_labels)),
        "label_accuracy": (right, kept & ~ood),
        "ood_precision": (ood, ~kept),
    }
    values = {
        name: 100 * float(hits[among].float().mean())
        for name, (hits, among) in shares.items()
        if among.any()
    }
    if ood.any() and not ood.all():
        web_score = scores.gather(1, web_labels[:, None]).squeeze(1)
        for name, score in (("ood_auroc", web_score), ("ood_auroc_max", scores.amax(dim=1))):
            values[name] = 100 * float(binary_auroc(1 - score.clamp(0, 1), ood.long()))
    return values
