"""What every arm shares: a network and its averaged copy, both evaluated, and pseudo-label logs."""

from typing import Any, ClassVar

from torch import Tensor, nn

from shared.nn.encoder import Encoder
from shared.tasks.classification import Batch, ClassificationMethod

__all__ = ["Batch", "Classifier"]


class Classifier(ClassificationMethod):
    """An `Encoder` under training; subclasses add the averaged copy and `training_step`.

    Args:
        backbone, num_classes, projection: see `Encoder`. FixMatch and the supervised baseline
            have no projection.
        channels_last: memory layout of the network; exact, and faster on CPU and GPU.
    """

    evaluated: ClassVar[dict[str, str]] = {"": "encoder", "_ema": "averaged"}
    predictor: ClassVar[str] = "averaged"

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any] | None,
        channels_last: bool,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, num_classes, projection)
        self.lay_out(self.encoder, channels_last)

    @property
    def averaged(self) -> nn.Module:
        """The EMA copy or momentum encoder, evaluated as `_ema` and used to predict."""
        raise AttributeError(f"{type(self).__name__} has no averaged network")

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
