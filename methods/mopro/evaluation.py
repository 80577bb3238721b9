"""The paper's transfer protocols: fine-tuning, low-shot SVMs, robustness (docs/papers/mopro.md,
section 7)."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.readers.folders import class_folders, text_lines
from shared.nn.encoder import Encoder
from shared.tasks import frozen_features, linear_classification
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method


class FineTuning(linear_classification.LinearClassification):
    """All layers on a fraction of ImageNet, the classifier continued where it fits."""


class LowShotSVM(frozen_features.LowShotSVM):
    """VOC07 and Places205: linear SVMs on few images, on features of the frozen backbone."""


class Robustness(Method):
    """Classification of a set that has some of the network's classes (ImageNet-R, ImageNet-A).

    The other classes' logits are left out. Logs in percent top-1, top-5 and `calibration_error`.

    Args:
        class_list: the network's class names in order, to compare with the names of the data: a
            folder with one folder per class, or a file with a name at the start of each line.
        bin_size: images per confidence bin of the calibration error.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        class_list: str,
        bin_size: int,
        channels_last: bool,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = Encoder(backbone, num_classes, None)
        self.lay_out(self.encoder, channels_last)
        self.accuracies = Accuracies()
        self.judged = frozen_features.EvaluatedFeatures()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits, _ = self.encoder(self.concatenate([batch["images"]]))
        present = torch.tensor(self.present_classes(), device=logits.device)
        probabilities = logits[:, present].softmax(dim=1)
        self.accuracies.update(probabilities, batch["labels"])
        confidence, predicted = probabilities.max(dim=1)
        right = predicted == batch["labels"]
        self.judged.add(torch.stack([confidence, right.float()], dim=1), batch)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.accuracies.compute("test"))
        confidence, right = self.judged.take(self).features.T
        error = rms_calibration_error(confidence, right, self.hparams["bin_size"])
        self.log("test/calibration_error", 100 * error)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) probabilities of all the network's classes."""
        return self.encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def present_classes(self) -> list[int]:
        """The network's class of each class of the data, which must know them all."""
        listed, classes = self.hparams["class_list"], self.hparams["num_classes"]
        known = read_class_names(Path(listed))
        if len(known) != classes:
            raise ValueError(f"{listed} names {len(known)} classes, the network has {classes}")
        names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"the network has no class {unknown[0]!r}, which the data has")
        return [known.index(name) for name in names]


def read_class_names(path: Path) -> list[str]:
    """Sorted folder names of a folder, or the first word of each line of a file."""
    return class_folders(path) if path.is_dir() else [x.split()[0] for x in text_lines(path)]


def rms_calibration_error(confidence: Tensor, right: Tensor, bin_size: int) -> float:
    """Root mean square difference of the predicted class's confidence (n,) and accuracy over bins
    of `bin_size` images by confidence, weighed by size; the last one takes what is left over."""
    order = confidence.argsort(stable=True)
    sorted_confidence, sorted_right = confidence[order].double(), right[order].double()
    bins = max(1, len(order) // bin_size)
    bounds = [i * bin_size for i in range(bins)] + [len(order)]
    total = 0.0
    for start, stop in pairwise(bounds):
        gap = sorted_confidence[start:stop].mean() - sorted_right[start:stop].mean()
        total += (stop - start) / len(order) * float(gap) ** 2
    return total**0.5
