"""ALBEF's golden cases of text: cleaning rules and the tokeniser."""

import tempfile
from pathlib import Path
from typing import Any

from shared.data.text.cleaning import clean_caption, clean_question
from shared.data.text.wordpiece import WordPiece

RULES = {"pre_caption": clean_caption, "pre_question": clean_question}


def text_cleaning(config: Any, inputs: Any, weights: Any) -> dict[str, Any]:
    """`n` strings, cleaned by both rules; what is expected of each stands in the config."""
    agreeing = 0
    for examples in zip(*(config[rule] for rule in RULES), strict=True):
        for clean, example in zip(RULES.values(), examples, strict=True):
            text = clean(example["input"], example["max_words"])
            assert text == example["output"], f"{clean}({example['input']!r}) gives {text!r}"
        agreeing += 1
    return {"n": agreeing}


def tokenizer(config: Any, inputs: Any, weights: Any) -> dict[str, Any]:
    assert config["do_lower_case"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(config["vocab"]) + "\n", encoding="utf-8")
        ours = WordPiece(path)
    strings = config["strings"]
    pretrain_ids, pretrain_mask = ours.batch(strings, max_length=25)
    evaluation_ids, evaluation_mask = ours.batch(strings, max_length=30, pad_to=30)
    # Glued to a word, "[SEP]" is text, as in a tokeniser built from a file of words. The one that
    # the official scripts load finds it there, too: `answers`, which VQA uses, sets it apart.
    answer_ids, answer_mask = ours.batch([text + "[SEP]" for text in strings[:4]])
    return {
        "pretrain_ids": pretrain_ids,
        "pretrain_mask": pretrain_mask,
        "retrieval_eval_ids": evaluation_ids,
        "retrieval_eval_mask": evaluation_mask,
        "retrieval_train_ids": ours.batch(strings)[0],
        "answer_ids": answer_ids,
        "answer_mask": answer_mask,
    }
