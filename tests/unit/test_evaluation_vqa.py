"""Soft accuracy of VQA, against values by hand and a literal reading of its definition."""

import json
from pathlib import Path

import pytest
import torch

from shared.evaluation import vqa as evaluation
from shared.evaluation.vqa import (
    Answered,
    VQAEvaluation,
    accuracies,
    normalised,
    without_punctuation,
    write_results,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  a\tdog\n", "dog"),
        ("the cat and an owl", "cat and owl"),
        ("two", "2"),
        ("none", "0"),
        ("Ten men", "10 men"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("im", "im"),
        ("red, white", "red white"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("st. john.", "st john"),
        ("2.5", "2.5"),
        ("", ""),
    ],
)
def test_predictions_are_normalised(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_only_punctuation_of_true_answers_is_normalised() -> None:
    assert without_punctuation("The two, a dog.") == "The two a dog"


def batch(places: list[int], **truth: list) -> dict:
    ids = torch.tensor([1000 + place for place in places])
    return {"indices": torch.tensor(places), "question_ids": ids, **truth}


def test_collects_in_order_and_starts_afresh() -> None:
    collected = VQAEvaluation()
    collected.collect(batch([2, 0]), ["c", "a"])
    collected.collect(batch([1]), ["b"])
    assert collected.finish() == [
        Answered(0, 1000, "a", None, ()),
        Answered(1, 1001, "b", None, ()),
        Answered(2, 1002, "c", None, ()),
    ]
    assert collected.finish() == []


def test_accuracies_in_percent_by_kind() -> None:
    collected = VQAEvaluation()
    truth = [["yes"] * 10, ["1"] * 2 + ["2"] * 8, ["2"] * 7 + ["3"] * 3]
    kinds = [["yes/no"], ["number", "How many"], ["number"]]
    collected.collect(batch([0, 1, 2], answers=truth, kinds=kinds), ["yes", "one", "four"])
    assert accuracies(collected.finish()) == {
        "vqa_accuracy": 53.33,  # 100, 60 and 0
        "vqa_accuracy_yes_no": 100.0,
        "vqa_accuracy_number": 30.0,
        "vqa_accuracy_how_many": 60.0,
    }


def test_no_accuracy_without_truth() -> None:
    assert accuracies([Answered(0, 7, "a", None, ("number",))]) == {}


def test_all_ranks_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = VQAEvaluation()
    collected.collect(batch([1, 3]), ["b", "d"])
    other = [Answered(0, 1000, "a", None, ()), Answered(1, 1001, "b", None, ())]

    def gather(shares: list, own: list) -> None:
        shares[:] = [other, own]

    monkeypatch.setattr(evaluation, "world_size", lambda: 2)
    monkeypatch.setattr(evaluation.dist, "all_gather_object", gather)
    assert [row.place for row in collected.finish()] == [0, 1, 3]


def test_result_file_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "run" / "vqa_result.json"
    write_results(path, [Answered(0, 262148000, "down", 1.0, ()), Answered(1, 5, "ä", None, ())])
    assert json.loads(path.read_text()) == [
        {"question_id": 262148000, "answer": "down"},
        {"question_id": 5, "answer": "ä"},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["vqa_result.json"]
