"""Accuracies of many-, medium- and few-shot classes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.evaluation.shots import class_accuracies, macro_accuracy, shot_accuracy


def test_classes_without_test_images_are_left_out() -> None:
    counts = torch.tensor([500, 200, 50])
    result = shot_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), counts)
    assert result["many"] == 0.5
    assert math.isnan(result["medium"])
    assert math.isnan(result["few"])
    assert macro_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), 3) == 0.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_class_accuracies_count_by_class(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = torch.tensor(pairs).T
    found = class_accuracies(predictions, labels, 6)
    for number in range(6):
        of_class = [p for p, label in pairs if label == number]
        if of_class:
            assert found[number] == of_class.count(number) / len(of_class)
        else:
            assert found[number].isnan()


def test_refusals() -> None:
    counts = torch.tensor([5, 6])
    with pytest.raises(ValueError, match="no test image"):
        shot_accuracy(torch.zeros(0).long(), torch.zeros(0).long(), counts)
    with pytest.raises(ValueError, match=r"\(2,\) predictions, \(1,\) labels"):
        shot_accuracy(torch.tensor([0, 1]), torch.tensor([0]), counts)
    for label in (-1, 2):
        with pytest.raises(ValueError, match=f"labels from {label} to {label} with 2 classes"):
            shot_accuracy(torch.tensor([0]), torch.tensor([label]), counts)
