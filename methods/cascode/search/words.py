"""BM25 over the subtokens of the indexed texts, kept on disk."""

from pathlib import Path

from methods.cascode.lexical import BM25

TERMS = "words.json"
_NAMES = {
    "data_name": "words.data.npy",
    "indices_name": "words.rows.npy",
    "indptr_name": "words.starts.npy",
    "vocab_name": TERMS,
    "params_name": "words.settings.json",
}


class StoredBM25(BM25):
    """BM25 that is written once and then mapped into memory."""

    def save(self, folder: Path) -> None:
        """Write `words.*` into `folder`."""
        self._index.save(folder, show_progress=False, **_NAMES)

    @classmethod
    def load(cls, folder: Path) -> "StoredBM25":
        """What was saved there."""
        import bm25s

        words = cls.__new__(cls)
        words._index = bm25s.BM25.load(
            folder, mmap=True, show_progress=False, backend="numpy", **_NAMES
        )
        words._terms, words._size = words._index.vocab_dict, words._index.scores["num_docs"]
        return words
