"""BM25 of the texts of an index, kept as counts, so that a changed text costs only itself.

Parts of an index: `terms` (JSON: term -> how many texts have it), and for each term in turn those
texts (`postings`, int32) and how often they have it (`counts`, uint16).
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from methods.cascode.lexical import subtokens
from methods.cascode.search.store import packed
from shared.files import parse_json

PARTS = {"terms", "postings", "counts"}
K1, B = 1.2, 0.75  # as `BM25`
_MOST = np.iinfo(np.uint16).max


class Words:
    """The words of `size` stored texts. Raises ValueError if its parts are not what is stored."""

    def __init__(self, parts: Mapping[str, bytes], size: int) -> None:
        terms, self.size = parse_json(parts["terms"]), size
        self.rows = np.frombuffer(parts["postings"], np.int32)
        self.counts = np.frombuffer(parts["counts"], np.uint16)
        holders = list(terms.values()) if isinstance(terms, dict) else [-1]
        if not (
            len(self.counts) == len(self.rows) > 0
            and 0 <= self.rows.min() <= self.rows.max() < size
            and self.counts.min() > 0
            and all(type(number) is int and number >= 0 for number in holders)
            and sum(holders) == len(self.rows)
        ):
            raise ValueError("words, their counts and the texts do not fit")
        self.terms = dict(zip(terms, range(len(terms)), strict=True))
        self.ends = np.cumsum([0, *holders])
        lengths = np.bincount(self.rows, self.counts, size)
        self._norms = K1 * (1 - B + B * lengths / lengths.mean())

    def scores(self, query: str) -> NDArray[np.float32] | None:
        """(N,) scores >= 0, as those of `BM25`; None if no text has a word of the query."""
        known = [self.terms[token] for token in subtokens(query) if token in self.terms]
        if not known:
            return None
        scores = np.zeros(self.size)
        for term in known:
            part = slice(*self.ends[term : term + 2])
            rows, counts = self.rows[part], self.counts[part]
            rarity = np.log1p((self.size - len(rows) + 0.5) / (len(rows) + 0.5))
            scores[rows] += rarity * counts / (counts + self._norms[rows])
        return scores.astype(np.float32)


def count(
    texts: Sequence[str], old: Words | None = None, old_rows: NDArray[np.int64] | None = None
) -> dict[str, bytes]:
    """The parts for texts, none if they have no word; `old_rows` (N,) says which text of `old` each
    one is, -1 for a new one. The same parts as without them."""
    if old is None or old_rows is None:
        old_rows = np.full(len(texts), -1)
    terms = dict(old.terms) if old else {}
    found: list[tuple[int, int, int]] = []  # term, text, how often
    for row in np.flatnonzero(old_rows < 0).tolist():
        counted = Counter(subtokens(texts[row]))
        found += [(terms.setdefault(t, len(terms)), row, min(n, _MOST)) for t, n in counted.items()]
    table = np.array(found, np.int64).reshape(-1, 3)
    if old:
        new_rows = np.full(old.size, -1)
        new_rows[old_rows[old_rows >= 0]] = np.flatnonzero(old_rows >= 0)
        of_terms = np.repeat(np.arange(len(old.terms)), np.diff(old.ends))
        kept = np.stack([of_terms, new_rows[old.rows], old.counts], axis=1)
        table = np.concatenate([kept[kept[:, 1] >= 0], table])
    if not len(table):
        return {}
    texts_of = np.bincount(table[:, 0], minlength=len(terms))
    numbers = sorted((name, number) for name, number in terms.items() if texts_of[number])
    rank = np.zeros(len(terms), np.int64)
    rank[[number for _, number in numbers]] = np.arange(len(numbers))
    table = table[np.argsort(rank[table[:, 0]] * len(texts) + table[:, 1])]
    return {
        "terms": packed({name: int(texts_of[number]) for name, number in numbers}),
        "postings": table[:, 1].astype(np.int32).tobytes(),
        "counts": table[:, 2].astype(np.uint16).tobytes(),
    }
