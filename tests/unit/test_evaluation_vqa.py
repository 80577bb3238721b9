"""Soft accuracy of VQA, against values by hand and a literal reading of its definition."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shared import distributed
from shared.evaluation.vqa import Answered, accuracies, judged, normalised, without_punctuation
from shared.tasks.answering import AnswerEvaluation


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"), ("  a\tdog\n", "dog"), ("the cat and an owl", "cat and owl"), ("", ""),
        ("two", "2"), ("none", "0"), ("Ten men", "10 men"),
        ("isnt", "isn't"), ("couldnt've", "couldn't've"), ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"), ("im", "im"), ("st. john.", "st john"), ("2.5", "2.5"),
        ("red, white", "red white"), ("black/white", "black white"),
        ("black / white", "black white"), ("t-shirt", "t shirt"), ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
    ],
)  # fmt: skip
def test_predictions_are_normalised(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_only_punctuation_of_true_answers_is_normalised() -> None:
    assert without_punctuation("The two, a dog.") == "The two a dog"


def batch(places: list[int], **truth: list) -> dict:
    ids = torch.tensor([1000 + place for place in places])
    return {"indices": torch.tensor(places), "question_ids": ids, **truth}


def test_every_question_counts_once_over_all_ranks_and_the_test_writes_them_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = SimpleNamespace(default_root_dir=tmp_path / "run", is_global_zero=True)
    module = SimpleNamespace(trainer=trainer, answer=lambda batch: batch["said"])
    evaluation, other = AnswerEvaluation(), [Answered(n, 1000 + n, "ä", None, ()) for n in (0, 1)]
    evaluation.collect(module, batch([3, 1], said=[("d", 0.9), ("ä", 0.8)]))

    def gather(shares: list, own: list) -> None:
        shares[:] = [other, own]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    assert evaluation.metrics(module, testing=True) == {"evaluated": 3.0}
    path = tmp_path / "run" / "vqa_result.json"
    assert json.loads(path.read_text()) == [
        {"question_id": 1000, "answer": "ä"},
        {"question_id": 1001, "answer": "ä"},
        {"question_id": 1003, "answer": "d"},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["vqa_result.json"]
    assert evaluation.answered == []


def test_accuracies_in_percent_by_kind() -> None:
    truth = [["yes"] * 10, ["1"] * 2 + ["2"] * 8, ["2"] * 7 + ["3"] * 3]
    kinds = [["yes/no"], ["number", "How many"], ["number"]]
    answered = judged(batch([0, 1, 2], answers=truth, kinds=kinds), ["yes", "one", "four"])
    assert accuracies(answered) == {
        "vqa_accuracy": 53.33,  # 100, 60 and 0
        "vqa_accuracy_yes_no": 100.0,
        "vqa_accuracy_number": 30.0,
        "vqa_accuracy_how_many": 60.0,
    }
    assert accuracies([Answered(0, 7, "a", None, ("number",))]) == {}, "no truth, no accuracy"
