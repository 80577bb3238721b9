"""A whole index, read at once: functions, their texts, vectors and words.

Parts, besides the manifest: `functions` (JSON columns: path, language, digest and number of
functions of each file; name, first and last line and number of the text of each function), `texts`
(each once, in UTF-8), `vectors` (n, d) float16; and where a text has a word, of BM25, `terms`
(JSON: term -> how many texts have it), and for each term in turn those texts (`postings`, int32)
and their scores (`scores`, float32).

float16, because half the size costs at most 5e-5 of a cosine (measured, 384 dimensions), far less
than computing in bfloat16 does.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from methods.cascode.extraction import LANGUAGES
from methods.cascode.lexical import BM25, subtokens
from methods.cascode.search import store
from methods.cascode.search.store import SearchError, packed
from shared.files import parse_json

FLOAT = np.float16
_HERE = ".."  # root of an index that lies in the folder of its code
_PARTS = {"functions", "texts", "vectors"}
_OF_WORDS = {"terms", "postings", "scores"}
_BETWEEN = b"\xff"  # texts: a byte that UTF-8 does not have

Vectors = NDArray[np.float16]


class Entry(NamedTuple):
    """One function of a file."""

    name: str
    start_line: int
    end_line: int
    text: str


class IndexedFile(NamedTuple):
    path: str
    language: str
    digest: str  # of its bytes


class Place(NamedTuple):
    """Where a function is; `row` is the number of its text."""

    file: IndexedFile
    name: str
    start_line: int
    end_line: int
    row: int


class Index:
    """A whole index, read and checked.

    `any_tool`: whether another version of the tool may have made it, in the same format. `own`:
    whether it has the seal of this machine. A foreign one can say anything: it shows code of the
    folder that it lies in only. `words`: of its texts; None if they have none. SearchError if there
    is none, or it cannot be used.
    """

    def __init__(self, home: Path, any_tool: bool = False) -> None:
        self.home, self.path = home, home / store.DATABASE
        with store.reading(home) as connection:
            self.manifest = store.read_manifest(connection, home, any_tool)
            self.own = store.is_own(self.manifest)
            self.description = self.manifest["description"]
            if not self.own and self.description["root"] != _HERE:
                reason = f"{store.FOREIGN} and is not of the folder that it lies in"
                hint = "run `tenfold-search index` on the folder of the code"
                raise SearchError(f"the index in {home} {reason}: {hint}")
            self.root = Path(os.path.normpath(home / self.description["root"]))
            self.bytes = self.path.stat().st_size
            try:
                self._read(store.read_parts(connection, self.manifest))
            except (ValueError, RecursionError) as error:
                raise store.damaged(self.path, error) from error

    def _read(self, parts: Mapping[str, bytes]) -> None:
        """Raises ValueError unless everything that is looked up is there."""
        if parts.keys() not in (_PARTS, _PARTS | _OF_WORDS):
            raise ValueError("it has other parts")
        self._texts = parts["texts"].split(_BETWEEN)
        shape = len(self._texts), self.description["model"]["dimension"]
        self.vectors: Vectors = np.frombuffer(parts["vectors"], FLOAT).reshape(shape)
        found = parse_json(parts["functions"])
        # What is ours was checked when it was made.
        if not (self.own or (_fit(found, len(self)) and np.isfinite(self.vectors).all())):
            raise ValueError("its functions or vectors are none")
        files, *self._columns = found
        self.files = [IndexedFile(*file[:3]) for file in files]
        self.place_files = np.repeat(np.arange(len(files)), [file[3] for file in files])
        self.place_rows = np.array(self._columns[-1])
        functions = len(self.place_files)
        self.counts = {"files": len(files), "functions": functions, "texts": len(self)}
        self.words = Words(parts, len(self)) if parts.keys() > _PARTS else None

    def __len__(self) -> int:
        return len(self._texts)

    def place(self, number: int) -> Place:
        file = self.files[self.place_files[number]]
        return Place(file, *(column[number] for column in self._columns))

    def text(self, row: int) -> str:
        return self._texts[row].decode(errors="replace")

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.place_rows, kind="stable")
        return order, np.searchsorted(self.place_rows[order], np.arange(len(self) + 1))

    def places(self, row: int) -> list[int]:
        """Numbers of all places of a text, by path and line."""
        order, starts = self._by_row
        return order[starts[row] : starts[row + 1]].tolist()

    def entries(self) -> Iterator[tuple[IndexedFile, list[Entry]]]:
        """Yield every file with its functions, as they were indexed."""
        bounds = np.searchsorted(self.place_files, np.arange(len(self.files) + 1)).tolist()
        for file, (first, last) in zip(self.files, pairwise(bounds), strict=True):
            names, starts, ends, rows = (column[first:last] for column in self._columns)
            yield file, list(map(Entry, names, starts, ends, map(self.text, rows)))


class Words:
    """BM25 of `size` stored texts. Raises ValueError if its parts are not what is stored there."""

    def __init__(self, parts: Mapping[str, bytes], size: int) -> None:
        terms, self._size = parse_json(parts["terms"]), size
        self._postings = np.frombuffer(parts["postings"], np.int32)
        self._scores = np.frombuffer(parts["scores"], np.float32)
        counts = list(terms.values()) if isinstance(terms, dict) else [-1]
        if not (
            len(self._scores) == len(self._postings) > 0
            and 0 <= self._postings.min() <= self._postings.max() < size
            and np.isfinite(self._scores).all()
            and all(type(count) is int and count >= 0 for count in counts)
            and sum(counts) == len(self._scores)
        ):
            raise ValueError("words, their scores and the texts do not fit")
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


class _Stored(BM25):
    def parts(self) -> dict[str, bytes]:
        found = self._index.scores
        counts = np.diff(found["indptr"]).tolist()  # terms are numbered as they come
        return {
            "terms": packed(dict(zip(self._terms, counts, strict=True))),
            "postings": np.asarray(found["indices"], np.int32).tobytes(),
            "scores": np.asarray(found["data"], np.float32).tobytes(),
        }


def parts_of(
    files: Sequence[tuple[IndexedFile, Sequence[Entry]]], rows: Mapping[str, int], vectors: Vectors
) -> dict[str, bytes]:
    """The parts of a new index; `rows` numbers its texts."""
    counted = [[*file, len(entries)] for file, entries in files]
    *columns, texts = zip(*(entry for _, entries in files for entry in entries), strict=True)
    return {
        "functions": packed([counted, *columns, [rows[text] for text in texts]]),
        "texts": _BETWEEN.join(text.encode() for text in rows),
        "vectors": vectors.tobytes(),
        **(_Stored(list(rows)).parts() if any(map(subtokens, rows)) else {}),
    }


def _fit(columns: Any, texts: int) -> bool:
    """Whether these are files with functions, which have all of the texts."""
    if _types(columns) != [list] * 5:
        return False
    files, names, starts, ends, rows = columns
    number = len(names)
    return (
        all(_types(file) == [str, str, str, int] for file in files)
        and all(language in LANGUAGES and count >= 0 for _, language, _, count in files)
        and sum(file[3] for file in files) == number
        and _types(names) == [str] * number
        and all(_types(column) == [int] * number for column in (starts, ends, rows))
        and all(1 <= start <= end for start, end in zip(starts, ends, strict=True))
        and set(rows) == set(range(texts))
    )


def _types(value: Any) -> list[type]:
    return [type(part) for part in value] if isinstance(value, list) else []
