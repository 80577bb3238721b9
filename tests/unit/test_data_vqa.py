"""Batches of questions, answers and their weights, and what bad annotations are told."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.vqa import VQAData, read_answers, tokenised_questions
from shared.data.text.wordpiece import WordPiece
from tests.unit.vqa_toy import ANSWERS, data, entries, write

CLS, SEP = 2, 3


def ids(*words: str) -> list[int]:
    table = {"[PAD]": 0, "what": 5, "colour": 6, "is": 7, "it": 8, "the": 9, "red": 10, "green": 11}
    table |= {"blue": 12, "light": 13, "grey": 14, "dark": 15, "[CLS]": CLS, "[SEP]": SEP}
    return [table[word] for word in words]


def only_batch(module: VQAData, split: str) -> dict[str, Any]:
    (batch,) = getattr(module, f"{split}_dataloader")()
    return batch


def test_training_batch(tmp_path: Path) -> None:
    asked = entries(3)
    asked[1]["answer"] = ["green", "light grey", "green", "green", "blue"]
    asked[2] = {"image": "blue.png", "question": "what is it", "answer": "blue", "dataset": "vg"}
    write(tmp_path, train=asked)
    module = data(tmp_path, batch_size=3)
    module.setup("fit")
    batch = only_batch(module, "train")
    assert batch["images"].shape == (3, 3, 16, 16)

    order = batch["indices"].tolist()
    assert sorted(order) == [0, 1, 2]
    answers = {
        0: {"red": 0.7, "dark grey": 0.3},
        1: {"green": 0.6, "light grey": 0.2, "blue": 0.2},
        2: {"blue": 0.5},
    }
    expected = [pair for number in order for pair in answers[number].items()]
    assert batch["answer_counts"].tolist() == [len(answers[number]) for number in order]
    torch.testing.assert_close(batch["answer_weights"], torch.tensor([w for _, w in expected]))
    rows = [ids("[CLS]", *text.split(), "[SEP]") for text, _ in expected]
    for row, mask, tokens in zip(batch["answer_ids"], batch["answer_mask"], rows, strict=True):
        assert row.tolist() == tokens + [0] * (len(row) - len(tokens))
        assert mask.sum() == len(tokens)
    question = ids("[CLS]", "what", "is", "it")
    row = order.index(2)
    assert batch["input_ids"][row].tolist() == [*question, 0]  # no [SEP]
    assert batch["attention_mask"][row].tolist() == [1, 1, 1, 1, 0]


def test_length_of_questions(tmp_path: Path) -> None:
    """25 tokens and 30 words in training; 50 words and all their tokens in evaluation."""
    long = " ".join(["what"] * 60)
    asked = [entries(1)[0] | {"question": long}]
    write(tmp_path, train=asked, val=asked)
    module = data(tmp_path, batch_size=1)
    module.setup("fit")
    assert only_batch(module, "train")["input_ids"].shape == (1, 25)
    assert only_batch(module, "val")["input_ids"].shape == (1, 51)
    whole = data(tmp_path, batch_size=1, max_text_tokens={"train": None}, max_words={"eval": 3})
    whole.setup("fit")
    assert only_batch(whole, "train")["input_ids"].shape == (1, 31)
    assert only_batch(whole, "val")["input_ids"].shape == (1, 4)


def test_questions_are_cleaned() -> None:
    tokenizer = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "t", "it"])
    batch = tokenised_questions(tokenizer, ["Is IT?", "t-it!"], 30, None)
    assert batch["input_ids"].tolist() == [[2, 1, 6], [2, 5, 6]]
    assert batch["attention_mask"].dtype == torch.int64


def test_several_files_and_roots(tmp_path: Path) -> None:
    write(tmp_path, train=entries(2))
    (tmp_path / "genome").mkdir()
    (tmp_path / "blue.png").rename(tmp_path / "genome" / "b.png")
    genome = [{"dataset": "vg", "image": "b.png", "question": "what is it", "answer": "blue"}]
    (tmp_path / "vg.json").write_text(json.dumps(genome))
    module = data(
        tmp_path,
        files={"train": [str(tmp_path / "train.json"), str(tmp_path / "vg.json")]},
        single_answer_weight=0.25,
        image_root={"vqa": str(tmp_path), "vg": str(tmp_path / "genome")},
        batch_size=3,
    )
    module.setup("fit")
    batch = only_batch(module, "train")
    blue = batch["images"][batch["indices"].tolist().index(2), :, 0, 0]
    assert blue.tolist() == [-1, -1, 1]
    assert batch["answer_weights"].min() == 0.25


def test_training_questions_without_answer_are_left_out_with_one_warning(tmp_path: Path) -> None:
    asked = entries(6)
    del asked[1]["answer"]
    asked[2]["answer"] = []
    asked[4]["answer"] = 7
    write(tmp_path, train=asked)
    module = data(tmp_path, batch_size=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.setup("fit")
    (message,) = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert message.startswith("3 of 6 training entries")
    assert f"{tmp_path / 'train.json'}, entry 1: no answer" in message
    assert sorted(only_batch(module, "train")["indices"].tolist()) == [0, 3, 5]


def test_evaluation_batch(tmp_path: Path) -> None:
    asked = entries(2)
    asked[0] |= {"question_type": "is it"}
    asked[1].pop("answer_type")
    write(tmp_path, val=asked)
    module = data(tmp_path)
    module.setup("validate")
    batch = only_batch(module, "val")
    assert batch["question_ids"].tolist() == [100, 101]
    assert batch["question_ids"].dtype == torch.int64
    assert batch["answers"] == [entry["answer"] for entry in asked]
    assert batch["kinds"] == [["other", "is it"], []]
    assert not any(name.startswith("answer_") for name in batch)


@pytest.mark.parametrize("nothing", [{}, {"answer": None}, {"answer": []}])
def test_evaluation_without_answers(tmp_path: Path, nothing: dict[str, Any]) -> None:
    asked = [{k: v for k, v in e.items() if k != "answer"} | nothing for e in entries(2)]
    write(tmp_path, test=asked)
    module = data(tmp_path)
    module.setup("test")
    assert "answers" not in only_batch(module, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": None}, "entry 1: question_id is None, expected an integer"),
        ({"question_id": "101"}, "entry 1: question_id is '101', expected an integer"),
        ({"question_id": True}, "entry 1: question_id is True, expected an integer"),
        ({"question_id": 100}, "entry 1: question_id 100 is that of .*entry 0, too"),
        ({"answer": "red"}, "entry 1: its answer is 'red', expected a list of what several"),
        ({"answer": ["red", 2]}, r"entry 1: its answer is \['red', 2\], expected a list"),
        ({"answer": []}, "entry 0 has answers, .*entry 1 has none: give split 'test' all"),
        ({"answer_type": 3}, r"entry 1: answer_type and question_type must be texts, got \[3\]"),
    ],
)
def test_bad_questions_of_evaluation(tmp_path: Path, change: dict, message: str) -> None:
    asked = entries(3)
    asked[1] |= change
    write(tmp_path, test=asked)
    with pytest.raises(DataCorruptError, match=message) as caught:
        data(tmp_path).setup("test")
    assert str(tmp_path / "test.json") in str(caught.value)


def test_answers_to_choose_from(tmp_path: Path) -> None:
    write(tmp_path, val=entries(1))
    answers = data(tmp_path).answers
    assert list(answers) == ANSWERS
    assert answers["red"] == ids("[CLS]", "red", "[SEP]")
    assert answers["light grey"] == ids("[CLS]", "light", "grey", "[SEP]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no JSON"),
        ('{"red": 1}', "expected a JSON list of texts"),
        ('["red", 2]', "expected a JSON list of texts"),
        ("[]", "expected a JSON list of texts"),
        ('["red", " "]', "entry 1: a blank answer"),
        ('["red", "blue", "red"]', "entry 2: 'red' is entry 0"),
    ],
)
def test_bad_answer_lists(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, train=entries(4))
    path = tmp_path / "answer_list.json"
    path.write_text(content)
    with pytest.raises(DataCorruptError, match=message) as caught:
        data(tmp_path).setup("fit")
    assert str(path) in str(caught.value)


def test_missing_answer_list(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"answers\.json not found.*JSON list"):
        read_answers(tmp_path / "answers.json")
