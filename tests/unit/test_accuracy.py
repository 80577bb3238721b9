"""Top-k accuracy in percent."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from shared.evaluation.accuracy import TopKAccuracy, percent_correct


def logits_for(*classes: int) -> torch.Tensor:
    return 3.0 * torch.eye(4)[list(classes)]


def test_samples_weigh_equally_and_batch_mean_does_not() -> None:
    accuracy = TopKAccuracy()
    accuracy.update(logits_for(0, 1, 2, 3), torch.tensor([0, 1, 2, 0]))  # 3 of 4
    accuracy.update(logits_for(0), torch.tensor([1]))  # 0 of 1
    assert accuracy.compute().item() == pytest.approx(60.0)
    assert accuracy.batch_mean().item() == pytest.approx(37.5)
    accuracy.reset()
    accuracy.update(logits_for(2), torch.tensor([2]))
    assert accuracy.compute().item() == 100.0


def test_top_k() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 4)
    for k, expected in ((1, 25.0), (2, 50.0), (3, 75.0), (9, 100.0)):
        accuracy = TopKAccuracy(k)
        accuracy.update(logits, torch.arange(4))
        assert accuracy.compute().item() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_equals_torchmetrics(k: int) -> None:
    logits, labels = torch.randn(50, 8), torch.randint(8, (50,))
    accuracy = TopKAccuracy(k)
    for part in range(0, 50, 7):
        accuracy.update(logits[part : part + 7], labels[part : part + 7])
    theirs = multiclass_accuracy(logits, labels, 8, average="micro", top_k=k)
    assert accuracy.compute().item() == pytest.approx(100 * theirs.item(), abs=1e-4)


def test_counts_outside_of_inference_mode_after_counting_within() -> None:
    accuracy = TopKAccuracy(1)
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    with torch.inference_mode():
        accuracy.update(logits, labels)
    accuracy.update(logits, labels)
    assert float(accuracy.compute()) == pytest.approx(100 * 2 / 3)


def test_percent_correct() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    percent = percent_correct(logits, torch.tensor([0, 0, 0, 0]))
    assert percent.item() == 75
    assert not percent.requires_grad
