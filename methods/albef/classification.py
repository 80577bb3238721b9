"""What NLVR2 and SNLI-VE share: a text about one or two images belongs to one of C classes.

Shapes: B entries of this rank, R images (B or 2 B), L tokens, C classes.
Source: docs/papers/albef.md, sections 3.9, 3.10 and 7; salesforce/ALBEF@b9727e4
`models/model_nlvr.py`, `models/model_ve.py`, `NLVR.py`, `VE.py`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from methods.albef.losses import distilled_cross_entropy
from methods.albef.training import Batch, MomentumDistilled
from shared.training.method import Method


class ClassAccuracy(MulticlassConfusionMatrix):
    """Counts of (true, predicted) classes over all ranks, each entry once.

    Official scripts let ranks repeat entries and average over batches; here all count alike.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(len(names))
        self.names = tuple(names)

    def metrics(self) -> dict[str, Tensor]:
        """Since the last call: `accuracy` in percent of the entries, `accuracy_<name>` of those of
        a class (without classes of which there are none), `evaluated`, the number of entries."""
        counts = self.compute().double()
        self.reset()
        right, total = counts.diagonal(), counts.sum(dim=1)
        values = {"accuracy": 100 * right.sum() / total.sum(), "evaluated": total.sum()}
        for name, of_class, all_of_class in zip(self.names, right, total, strict=True):
            if all_of_class > 0:
                values[f"accuracy_{name}"] = 100 * of_class / all_of_class
        return {name: value.float() for name, value in values.items()}


class Classification(Method):
    """Evaluation and prediction; `encoders(images, ids, mask)` gives logits (B, C).

    Logs `val/...` and `test/...` of `ClassAccuracy`.
    """

    class_names: ClassVar[tuple[str, ...]]
    encoders: nn.Module
    accuracy: ClassAccuracy

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and labels (B,) of an evaluated batch."""
        return self.encoders(*inputs(batch)), batch["labels"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.accuracy.update(*self.outcome(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.accuracy.metrics().items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.accuracy.metrics().items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, C) class probabilities; the batch needs `images` and the texts."""
        return self.encoders(*inputs(batch)).float().softmax(dim=1)


class DistilledClassification(Classification, MomentumDistilled):
    """Fine-tuning with labels and the momentum copy's predictions.

    `official.warm_start` lets the copy start from the weights that it has loaded. The official
    NLVR2 script copies before it loads a file without momentum weights, so that its teacher starts
    from BERT and a random ViT (docs/papers/albef.md, section 10.1, item 5).

    Args:
        network: maps (images, ids, mask) to logits; it has the momentum copy.
        frame: see `MomentumDistilled`.
    """

    def __init__(self, network: nn.Module, **frame: Any):
        super().__init__(network, **frame)
        self.accuracy = ClassAccuracy(self.class_names)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        alpha = self.distillation_weight(batch_idx)
        logits = self.encoders(*inputs(batch))
        self.update_momentum()
        teacher_logits = None
        if alpha > 0:
            with torch.no_grad():
                teacher_logits = self.momentum_encoders.module(*inputs(batch))
        loss = distilled_cross_entropy(logits, batch["labels"], teacher_logits, alpha)
        self.log_train({"alpha": alpha, "accuracy": percent_right(logits, batch["labels"])})
        return self.total_loss({"loss_cls": loss}, {}, batch["indices"])


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Images (R, 3, S, S), ids and mask (B, L)."""
    return batch["images"], batch["input_ids"], batch["attention_mask"]


def percent_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows (B, C) whose largest logit is the label's, in percent."""
    return 100 * (logits.detach().argmax(dim=1) == labels).float().mean()
