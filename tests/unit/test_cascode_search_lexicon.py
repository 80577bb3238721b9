"""Words of an index: the scores of BM25, whatever came before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.cascode.lexical import BM25
from methods.cascode.search.lexicon import Words, count

WORD = st.sampled_from(["read", "write", "readFile", "http_server", "URLs", "of", "x"])
TEXTS = st.lists(st.lists(WORD, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=8)


@given(TEXTS, st.lists(WORD, min_size=1, max_size=5).map(" ".join))
def test_scores_are_those_of_bm25(texts, query):
    parts = count(texts)
    if not parts:
        with pytest.raises(ValueError, match="has a word"):
            BM25(texts)
        return
    (expected,) = BM25(texts).scores([query])
    scores = Words(parts, len(texts)).scores(query)
    if scores is None:
        assert not expected.any()
    else:
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@given(TEXTS, TEXTS)
def test_an_update_is_what_a_fresh_count_is(before, after):
    """Texts stay, move, come and go."""
    before, after = list(dict.fromkeys(before)), list(dict.fromkeys(after))
    parts = count(before)
    old = Words(parts, len(before)) if parts else None
    rows = np.array([before.index(text) if text in before else -1 for text in after])
    assert count(after, old, rows if old else None) == count(after)
