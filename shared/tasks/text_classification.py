"""Classification of texts about images: accuracy of all and of each class.

Shapes: B texts, C classes. Source: docs/papers/albef.md, section 7.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from shared.tasks.image_text_method import Evaluation, ImageTextBatch


class ClassAccuracy(MulticlassConfusionMatrix, Evaluation):
    """Counts (true, predicted) classes over all ranks, each text once.

    Official scripts let ranks repeat entries and average over batches; here all count alike. The
    module has `outcome(batch)`: logits (B, C) and labels (B,).
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(len(names))
        self.names = tuple(names)

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        self.update(*module.outcome(batch))

    def metrics(self, module: Any = None, testing: bool = False) -> dict[str, Tensor]:
        """Since the last call: `accuracy` in percent of the texts, `accuracy_<name>` of those of
        a class (without classes of which there are none), `evaluated`, the number of texts."""
        counts = self.compute().double()
        self.reset()
        right, total = counts.diagonal(), counts.sum(dim=1)
        values = {"accuracy": 100 * right.sum() / total.sum(), "evaluated": total.sum()}
        for name, of_class, all_of_class in zip(self.names, right, total, strict=True):
            if all_of_class > 0:
                values[f"accuracy_{name}"] = 100 * of_class / all_of_class
        return {name: value.float() for name, value in values.items()}


def percent_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows (B, C) whose largest logit is the label's, in percent."""
    return 100 * (logits.detach().argmax(dim=1) == labels).float().mean()
