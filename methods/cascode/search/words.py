"""BM25 over the subtokens of the indexed texts, kept on disk."""

from pathlib import Path

import numpy as np

from methods.cascode.lexical import BM25
from methods.cascode.search.arrays import map_array, rises
from shared.files import read_json

TERMS, SCORES, ROWS, STARTS = "words.json", "words.data.npy", "words.rows.npy", "words.starts.npy"
_NAMES = {
    "data_name": SCORES,
    "indices_name": ROWS,
    "indptr_name": STARTS,
    "vocab_name": TERMS,
    "params_name": "words.settings.json",
}
FILES = frozenset(_NAMES.values())


class StoredBM25(BM25):
    """BM25 that is written once and then mapped into memory."""

    def save(self, folder: Path) -> None:
        """Write `words.*` into `folder`."""
        self._index.save(folder, show_progress=False, **_NAMES)

    @classmethod
    def load(cls, folder: Path, size: int) -> "StoredBM25":
        """What was saved there, of `size` texts; scores need none of the settings.

        Raises:
            OSError: a file cannot be read. ValueError: they are not what is saved.
        """
        import bm25s

        terms = read_json(folder / TERMS)
        scores = map_array(folder / SCORES, {"float32"})
        rows = map_array(folder / ROWS, {"int32", "int64"})
        starts = map_array(folder / STARTS, {"int32", "int64"})
        ids = range(len(starts) - 1)
        if not (
            len(rows) == len(scores) == starts[-1]
            and starts[0] == 0
            and rises(starts, 0, len(rows))
            and 0 <= rows.min() <= rows.max() < size
            and np.isfinite(scores).all()
        ):
            raise ValueError("scores of words do not fit the texts")
        if not (
            isinstance(terms, dict)
            and all(type(term) is int and term in ids for term in terms.values())
        ):
            raise ValueError(f"{TERMS} does not fit the scores")
        words = cls.__new__(cls)
        words._terms, words._size = terms, size
        words._index = bm25s.BM25(backend="numpy")
        words._index.scores = {"data": scores, "indices": rows, "indptr": starts, "num_docs": size}
        words._index.nonoccurrence_array = None
        return words
