"""BM25 over the subtokens of identifiers: the lexical baseline that a code search has to beat.

Splitting identifiers matters more than anything else: BM25 on code tokens as they are finds half as
much (docs/papers/cascode.md, section 14.7: MRR 0.255 against 0.468).
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# `HTTPServer_v2` -> HTTP, Server, v, 2; `URLs` -> URL, s. Letters without case count as small ones.
_SMALL = r"[^\W\d_A-Z]"
SUBTOKEN = re.compile(rf"[A-Z]{{2,}}(?=s(?![^\W\d_]))|[A-Z]+(?!{_SMALL})|[A-Z]?{_SMALL}+|\d+")
_STOP = "an and are as at be by for from if in is it its of on or that the this to was will with"
STOP_WORDS = frozenset(_STOP.split())


def subtokens(text: str) -> list[str]:
    """Words of a text and parts of its identifiers, cut at underscores, changes of case and digits;
    in lower case, without single characters and `STOP_WORDS`."""
    words = (token.lower() for token in SUBTOKEN.findall(text))
    return [token for token in words if len(token) > 1 and token not in STOP_WORDS]


class BM25:
    """An index of N codes without their documentation; a ValueError if none has a subtoken.

    Equal texts have equal scores; a code without any subtoken is never found. `k1` is the
    saturation of a term's count, `b` the weight of a code's length.
    """

    def __init__(self, codes: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        try:
            import bm25s
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("BM25 needs bm25s: pip install 'tenfold[code]'") from error
        terms: dict[str, int] = {}
        ids = [[terms.setdefault(t, len(terms)) for t in subtokens(code)] for code in codes]
        if not terms:
            raise ValueError(f"none of {len(codes)} codes has a word to be found by")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index((ids, terms), create_empty_token=False, show_progress=False)
        self._terms, self._size = terms, len(codes)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(Q, N) scores >= 0 of Q queries; the row of one without an indexed term is 0 throughout:
        it ranks nothing, and must not be standardised."""
        scores = np.zeros((len(queries), self._size), dtype=np.float32)
        for row, query in zip(scores, queries, strict=True):
            if terms := [self._terms[t] for t in subtokens(query) if t in self._terms]:
                row[:] = self._index.get_scores_from_ids(terms)
        return scores
