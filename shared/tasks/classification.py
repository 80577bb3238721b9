"""What methods with class logits share: accuracy on the validation and test set, prediction."""

from typing import Any, ClassVar

from torch import Tensor, nn

from shared.evaluation.accuracy import TopKAccuracy
from shared.training.method import Method

Batch = dict[str, Tensor]


class ClassificationMethod(Method):
    """Logs `val/top1`, `val/top5`, `test/top1`, `test/top5` of each evaluated network.

    An evaluated network is an attribute of the subclass that maps images to a tuple whose first
    entry is the logits (N, C), as `shared.nn.encoder.Encoder` does.

    Class attributes:
        evaluated: suffix of the metric's name -> attribute that holds the network.
        predictor: attribute that holds the network used to predict.
    """

    evaluated: ClassVar[dict[str, str]] = {"": "encoder"}
    predictor: ClassVar[str] = "encoder"

    def __init__(self):
        super().__init__()
        self.accuracy: Any = nn.ModuleDict(
            {f"top{k}{suffix}": TopKAccuracy(k) for k in (1, 5) for suffix in self.evaluated}
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = batch["images"].contiguous(memory_format=self.memory_format)
        for suffix, name in self.evaluated.items():
            self.score(suffix, getattr(self, name)(images)[0], batch["labels"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def score(self, suffix: str, logits: Tensor, labels: Tensor) -> None:
        """Count one batch, logits (N, C) and labels (N,); extend to count something more."""
        for k in (1, 5):
            self.accuracy[f"top{k}{suffix}"].update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        self.log_accuracy("test")

    def log_accuracy(self, split: str) -> None:
        """Log and reset the counts of one split, "val" or "test"."""
        for name, accuracy in self.accuracy.items():
            self.log(f"{split}/{name}", accuracy.compute())  # already over all ranks
            accuracy.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) class probabilities."""
        images = batch["images"].contiguous(memory_format=self.memory_format)
        return getattr(self, self.predictor)(images)[0].softmax(dim=1)
