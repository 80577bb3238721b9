"""What every arm shares: a network, its averaged copy, evaluation of both, prediction."""

from typing import Any

import torch
from torch import Tensor, nn

from methods.comatch.model import CoMatchNetwork
from shared.evaluation.accuracy import TopKAccuracy
from shared.training.method import Method

Batch = dict[str, Tensor]


class Classifier(Method):
    """A `CoMatchNetwork` under training; subclasses add the averaged copy and `training_step`.

    Args:
        backbone, num_classes, projection: see `CoMatchNetwork`.
        channels_last: memory layout of the network; exact, and faster on CPU and GPU.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any] | None,
        channels_last: bool,
    ):
        super().__init__()
        self.encoder = CoMatchNetwork(backbone, num_classes, projection)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.accuracy: Any = nn.ModuleDict(
            {f"top{k}{suffix}": TopKAccuracy(k) for k in (1, 5) for suffix in ("", "_ema")}
        )

    @property
    def averaged(self) -> nn.Module:
        """The EMA copy or momentum encoder, evaluated as `_ema` and used to predict."""
        raise AttributeError(f"{type(self).__name__} has no averaged network")

    def concatenate(self, views: list[Tensor]) -> Tensor:
        """One batch in the network's memory format; BatchNorm sees all views together."""
        return torch.cat(views).contiguous(memory_format=self.memory_format)

    def log_pseudo_labels(self, labels: Tensor, mask: Tensor, hidden_labels: Tensor) -> None:
        """Coverage of the confident pseudo-labels and their accuracy, in percent.

        Args: labels (M,) pseudo-labels, mask (M,), hidden_labels (M,) true labels, -1 if unknown.
        """
        values: dict[str, Tensor | float] = {"coverage": 100 * mask.mean()}
        known = mask * (hidden_labels >= 0)
        if known.any():
            right = (labels == hidden_labels) * known
            values["pseudo_label_accuracy"] = 100 * right.sum() / known.sum()
        self.log_train(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = batch["images"].contiguous(memory_format=self.memory_format)
        for suffix, network in (("", self.encoder), ("_ema", self.averaged)):
            logits, _ = network(images)
            for k in (1, 5):
                self.accuracy[f"top{k}{suffix}"].update(logits, batch["labels"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        self.log_accuracy("test")

    def log_accuracy(self, split: str) -> None:
        for name, accuracy in self.accuracy.items():
            self.log(f"{split}/{name}", accuracy.compute())  # already over all ranks
            accuracy.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) class probabilities of the averaged network."""
        return self.averaged(batch["images"])[0].softmax(dim=1)
