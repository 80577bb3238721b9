"""The frame of methods with class logits: what is evaluated, logged, reset and predicted."""

from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shared.tasks.classification import ClassificationMethod


class Fixed(nn.Module):
    """Images (N, 1, 1, C) are the logits themselves, times `factor`."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return self.factor * images.flatten(1), None


class One(ClassificationMethod):
    def __init__(self):
        super().__init__()
        self.encoder = Fixed(1.0)

    def training_step(self, batch, batch_idx):
        return self.encoder(batch["images"])[0].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Two(One):
    """Evaluates a second network, wrong whenever the first is right, and predicts by it."""

    evaluated: ClassVar[dict[str, str]] = {"": "encoder", "_ema": "opposite"}
    predictor: ClassVar[str] = "opposite"

    def __init__(self):
        super().__init__()
        self.opposite = Fixed(-1.0)
        self.seen: list[tuple[str, int]] = []

    def score(self, suffix: str, logits: Tensor, labels: Tensor) -> None:
        super().score(suffix, logits, labels)
        self.seen.append((suffix, len(labels)))


def batches(labels: list[int]) -> DataLoader:
    """Batches of 2 and 1 whose largest logit is class 0, then 1, ..., 5."""
    images = torch.arange(6, 0, -1.0).expand(3, 1, 1, 6)
    items = [{"images": x, "labels": torch.tensor(y)} for x, y in zip(images, labels, strict=True)]
    return DataLoader(items, batch_size=2)


@pytest.fixture
def trainer(tmp_path) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def test_one_network_is_scored_by_samples_on_both_splits(trainer) -> None:
    [test] = trainer.test(One(), batches([0, 0, 5]), verbose=False)
    assert test == pytest.approx({"test/top1": 200 / 3, "test/top5": 200 / 3})
    [val] = trainer.validate(One(), batches([0, 1, 4]), verbose=False)
    assert val == pytest.approx({"val/top1": 100 / 3, "val/top5": 100.0})


def test_each_evaluation_starts_from_nothing(trainer) -> None:
    module = One()
    assert trainer.test(module, batches([0, 0, 0]), verbose=False)[0]["test/top1"] == 100
    assert trainer.test(module, batches([1, 1, 1]), verbose=False)[0]["test/top1"] == 0
    trainer.fit(One(), batches([0, 0, 0]), batches([0, 1, 1]))  # validated twice
    assert float(trainer.callback_metrics["val/top1"]) == pytest.approx(100 / 3)


def test_two_networks_are_scored_apart_and_score_can_be_extended(trainer) -> None:
    module = Two()
    [test] = trainer.test(module, batches([0, 0, 5]), verbose=False)
    assert test["test/top1"] == pytest.approx(200 / 3)
    assert test["test/top1_ema"] == pytest.approx(100 / 3)
    assert test["test/top5_ema"] == pytest.approx(100 / 3)
    assert module.seen == [("", 2), ("_ema", 2), ("", 1), ("_ema", 1)]


@pytest.mark.parametrize(("module", "best"), [(One, 0), (Two, 5)])
def test_prediction_is_the_predictors_probabilities(trainer, module, best) -> None:
    first, second = trainer.predict(module(), batches([0, 0, 0]))
    assert first.shape == (2, 6)
    torch.testing.assert_close(first.sum(dim=1), torch.ones(2))
    assert second.argmax(dim=1).tolist() == [best]


def test_counts_are_no_part_of_a_checkpoint() -> None:
    assert set(One().state_dict()) == {"encoder.factor"}
