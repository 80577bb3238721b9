"""Linear classification on a frozen backbone, and fine-tuning of all layers.

Sources: docs/papers/pcl.md, sections 7.2 and 7.3, docs/papers/mopro.md, section 7.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from shared.evaluation.accuracy import percent_correct
from shared.nn.encoder import Encoder
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method
from shared.training.schedules import epoch_factor

NOT_IMAGES = ("labels", "indices")


class LinearClassification(Method):
    """A linear classifier on `encoder.backbone`, which learns too or stays as it is.

    A method's package subclasses it, so that its `official.warm_start` fills the backbone from the
    pre-training. Batch: `images`, or one view under any other name, and `labels`, `indices`.

    Args:
        freeze: the backbone gets no gradient and stays in evaluation mode during training, so
            that its BatchNorm statistics are those of the pre-training.
        head_std: initial weights N(0, head_std^2) and biases 0; None: those of torch.
        head_lr: of the classifier; None: `lr`. A new classifier on a trained backbone needs more.
        schedule, total_epochs: see `epoch_factor`.
    """

    accumulates = True

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        freeze: bool,
        head_std: float | None,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        total_epochs: int,
        channels_last: bool,
        head_lr: float | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.factor = epoch_factor(schedule, total_epochs)
        self.encoder = Encoder(backbone, num_classes, projection=None)
        head: Any = self.encoder.classifier
        if head_std is not None:
            nn.init.normal_(head.weight, std=head_std)
            nn.init.zeros_(head.bias)
        self.encoder.backbone.requires_grad_(not freeze)
        self.lay_out(self.encoder, channels_last)
        self.accuracies = Accuracies()
        self.train()

    def train(self, mode: bool = True) -> "LinearClassification":
        super().train(mode)
        if self.hparams["freeze"]:
            self.encoder.backbone.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = next(value for name, value in batch.items() if name not in NOT_IMAGES)
        logits, _ = self.encoder(images.contiguous(memory_format=self.memory_format))
        labels = batch["labels"]
        self.log_train({"top1": percent_correct(logits, labels)})
        return self.total_loss({"loss_ce": F.cross_entropy(logits, labels)}, {}, batch["indices"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, _ = self.encoder(self.concatenate([batch["images"]]))
        self.accuracies.update(logits, batch["labels"])

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        self.log_dict(self.accuracies.compute(split))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) class probabilities."""
        return self.encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def configure_optimizers(self):
        p = self.hparams
        head_lr = p["lr"] if p["head_lr"] is None else p["head_lr"]
        head: Any = self.encoder.classifier
        groups: list[dict[str, Any]] = [{"params": head.parameters(), "lr": head_lr}]
        if not p["freeze"]:
            groups.append({"params": self.encoder.backbone.parameters()})
        return self.sgd(groups, self.factor, weight_decay=p["weight_decay"])
