"""BM25 over the subtokens of the indexed texts, as parts of the index.

Parts: `terms` (JSON: term -> how many texts have it), and for each term in turn those texts
(`postings`, int32) and their scores (`scores`, float32).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from methods.cascode.lexical import BM25, subtokens
from methods.cascode.search.store import packed
from shared.files import parse_json

PARTS = {"terms", "postings", "scores"}


class Words:
    """BM25 of N stored texts.

    Args:
        parts: as `parts_of` makes them; read with distrust. size: N.

    Raises:
        ValueError: they are not what is stored there.
    """

    def __init__(self, parts: Mapping[str, bytes], size: int) -> None:
        terms, self._size = parse_json(parts["terms"]), size
        self._postings = np.frombuffer(parts["postings"], np.int32)
        self._scores = np.frombuffer(parts["scores"], np.float32)
        if not (
            len(self._scores) == len(self._postings) > 0
            and 0 <= self._postings.min() <= self._postings.max() < size
            and np.isfinite(self._scores).all()
        ):
            raise ValueError("scores of words do not fit the texts")
        counts = list(terms.values()) if isinstance(terms, dict) else [-1]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its words are none")
        if sum(counts) != len(self._scores):
            raise ValueError("words do not fit their scores")
        self._terms = dict(zip(terms, range(len(terms)), strict=True))
        self._ends = np.cumsum([0, *counts])

    def scores(self, query: str) -> NDArray[np.float32] | None:
        """(N,) scores >= 0, as those of `BM25`; None if no text has a word of the query."""
        known = [self._terms[token] for token in subtokens(query) if token in self._terms]
        if not known:
            return None
        scores = np.zeros(self._size, np.float32)
        for term in known:
            part = slice(*self._ends[term : term + 2])
            scores[self._postings[part]] += self._scores[part]  # a text stands in it once
        return scores


def parts_of(texts: Sequence[str]) -> dict[str, bytes]:
    """The parts of these texts; none if they have no words."""
    return _Stored(texts).parts() if any(map(subtokens, texts)) else {}


class _Stored(BM25):
    def parts(self) -> dict[str, bytes]:
        found = self._index.scores
        counts = np.diff(found["indptr"]).tolist()  # terms are numbered as they come
        return {
            "terms": packed(dict(zip(self._terms, counts, strict=True))),
            "postings": np.asarray(found["indices"], np.int32).tobytes(),
            "scores": np.asarray(found["data"], np.float32).tobytes(),
        }
