"""Accuracies as a part of a module: weighed by samples, logged and reset, of several networks."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shared.tasks.classification import Accuracies


class Two(pl.LightningModule):
    """Images (N, C) are the first network's logits, and negated the second one's."""

    def __init__(self):
        super().__init__()
        self.accuracies = Accuracies("", "_ema")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for factor, suffix in ((1, ""), (-1, "_ema")):
            self.accuracies.update(factor * batch["images"], batch["labels"], suffix)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.accuracies.compute("val"))

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.accuracies.compute("test"))


def batches(labels: list[int]) -> DataLoader:
    """Batches of 2 and 1 whose largest logit is class 0, then 1, ..., 5."""
    images = torch.arange(6, 0, -1.0).expand(3, 6)
    items = [{"images": x, "labels": torch.tensor(y)} for x, y in zip(images, labels, strict=True)]
    return DataLoader(items, batch_size=2)


def test_networks_are_scored_apart_by_samples_and_anew_each_time(tmp_path) -> None:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, **dict.fromkeys(quiet, False)
    )
    module = Two()
    [test] = trainer.test(module, batches([0, 0, 5]), verbose=False)
    assert test == pytest.approx(
        {"test/top1": 200 / 3, "test/top5": 200 / 3}
        | {"test/top1_ema": 100 / 3, "test/top5_ema": 100 / 3}
    )
    [val] = trainer.validate(module, batches([0, 1, 4]), verbose=False)
    assert val["val/top1"] == pytest.approx(100 / 3)
    assert val["val/top5"] == pytest.approx(100.0)
    assert not module.state_dict(), "counts are no part of a checkpoint"
