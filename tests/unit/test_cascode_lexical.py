"""Subtokens of identifiers, BM25 against its formula, queries that no code knows."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.lexical import BM25, STOP_WORDS, subtokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getFileName", ["get", "file", "name"]),
        ("get_file_name", ["get", "file", "name"]),
        ("GET_FILE", ["get", "file"]),
        ("parseHTTPServer", ["parse", "http", "server"]),
        ("HTTP", ["http"]),
        ("URLs userIDs", ["url", "user", "id"]),
        ("URLsafe", ["ur", "lsafe"]),  # case alone cannot tell
        ("sha256 utf8 x86_64", ["sha", "256", "utf", "86", "64"]),
        ("self.__init__(x, i2)", ["self", "init"]),
        ("", []),
        ("_ __ + 1 a", []),
        ("The size of the file", ["size", "file"]),
        ("naïve größe 日本語", ["naïve", "größe", "日本語"]),
    ],
)
def test_identifiers_are_cut_into_words(text, expected):
    assert subtokens(text) == expected


@settings(max_examples=50)
@given(st.text("aZ_ 19éİßǅ日\n.(") | st.text("getHTTP_s2 "))
def test_subtokens_are_words_in_lower_case_and_stay_what_they_are(text):
    found = subtokens(text)
    assert all(len(token) > 1 and token not in STOP_WORDS for token in found)
    assert all(token == token.lower() and "_" not in token for token in found)
    assert not any(character.isspace() for token in found for character in token)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["read", "json", "file", "http", "parse"]), max_size=6))
def test_all_ways_to_write_an_identifier_have_the_same_subtokens(words):
    camel = "".join(word.title() for word in words)
    assert subtokens("_".join(words)) == subtokens(camel) == subtokens(" ".join(words)) == words


CODES = [
    "def read_file(path): return open(path).read()",
    "def writeFile(path, text): open(path).write(text)",
    "def parse_json(text): return json.loads(text)",
    "x = 1",
]
QUERIES = ["Reads a JSON file", "parse JSON text, text", "zebra", "of the", "readFile writes"]


def bm25_by_formula(query: str, code: str, k1: float, b: float) -> float:
    """Robertson's formula with Lucene's inverse document frequency and without (k1 + 1)."""
    documents = [subtokens(c) for c in CODES]
    mean = sum(map(len, documents)) / len(documents)
    tokens, total = subtokens(code), 0.0
    for term in subtokens(query):
        holding = sum(term in document for document in documents)
        weight = math.log(1 + (len(CODES) - holding + 0.5) / (holding + 0.5))
        count = tokens.count(term)
        total += weight * count / (count + k1 * (1 - b + b * len(tokens) / mean))
    return total


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
def test_scores_follow_the_formula(k1, b):
    pytest.importorskip("bm25s")
    found = BM25(CODES, k1, b).scores(QUERIES)
    expected = [[bm25_by_formula(query, code, k1, b) for code in CODES] for query in QUERIES]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_query_that_no_code_knows_has_a_row_of_zeros():
    pytest.importorskip("bm25s")
    index = BM25(CODES)
    assert (index.scores(QUERIES) == 0).all(axis=1).tolist() == [False, False, True, True, False]
    assert index.scores([]).shape == (0, 4)


@pytest.mark.parametrize("codes", [[], ["x", "", "+ 1"]])
def test_codes_without_a_word_are_refused(codes):
    pytest.importorskip("bm25s")
    with pytest.raises(ValueError, match=f"none of {len(codes)} codes has a word"):
        BM25(codes)


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tenfold\[code\]'"):
        BM25(CODES)
