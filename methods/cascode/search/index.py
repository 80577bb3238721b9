"""A whole index, read at once: functions, their texts, vectors and words.

Parts, besides the manifest: `functions` (JSON columns: path, language, digest and number of
functions of each file; name, first and last line and number of the text of each function), `texts`
(each once, in UTF-8), `vectors` (n, d) float16, and those of words.py.

float16, because half the size costs at most 5e-5 of a cosine (measured, 384 dimensions), far less
than computing in bfloat16 does.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.cascode.extraction import LANGUAGES
from methods.cascode.search import words
from methods.cascode.search.store import (
    DATABASE,
    FOREIGN,
    Description,
    SearchError,
    damaged,
    is_own,
    packed,
    read_manifest,
    read_parts,
    reading,
)
from shared.files import parse_json

FLOAT = np.float16
_HERE = ".."  # root of an index that lies in the folder of its code
_PARTS = {"functions", "texts", "vectors"}
_BETWEEN = b"\xff"  # texts: a byte that UTF-8 does not have

Vectors = NDArray[np.float16]


@dataclass(frozen=True)
class Entry:
    """One function of a file."""

    name: str
    start_line: int
    end_line: int
    text: str


@dataclass(frozen=True)
class IndexedFile:
    path: str
    language: str
    digest: str  # of its bytes


@dataclass(frozen=True)
class Place:
    """Where a function is; `row` is the number of its text."""

    file: IndexedFile
    name: str
    start_line: int
    end_line: int
    row: int


class Index:
    """A whole index, read and checked.

    Args:
        home: the folder that holds the database.
        any_tool: whether another version of the tool may have made it, in the same format.

    Attributes:
        own: whether it has the seal of this machine. A foreign one can say anything: it shows code
            of the folder that it lies in only.
        words: of its texts; None if they have none.

    Raises:
        SearchError: there is none, another version of the tool made it, it is a foreign one of
            another folder, or a part is missing, cut off or changed.
    """

    def __init__(self, home: Path, any_tool: bool = False) -> None:
        self.home, self.path = home, home / DATABASE
        with reading(home) as connection:
            self.manifest = read_manifest(connection, home, any_tool)
            self.own = is_own(self.manifest)
            self.description = Description(**self.manifest["description"])
            if not self.own and self.description.root != _HERE:
                raise SearchError(
                    f"the index in {home} {FOREIGN}, and is not of the folder that it lies in: run "
                    "`tenfold-search index` on the folder of the code"
                )
            self.root = Path(os.path.normpath(home / self.description.root))
            self.bytes = self.path.stat().st_size
            try:
                self._read(read_parts(connection, self.manifest))
            except (ValueError, RecursionError) as error:
                raise damaged(self.path, error) from error

    def _read(self, parts: Mapping[str, bytes]) -> None:
        """Raises ValueError unless everything that is looked up is there."""
        if parts.keys() not in (_PARTS, _PARTS | words.PARTS):
            raise ValueError("it has other parts")
        self._texts = parts["texts"].split(_BETWEEN)
        shape = len(self._texts), self.description.model["dimension"]
        self.vectors: Vectors = np.frombuffer(parts["vectors"], FLOAT).reshape(shape)
        found = parse_json(parts["functions"])
        if not self.own:  # what is ours was checked when it was made
            _check_columns(found, len(self._texts))
            if not np.isfinite(self.vectors).all():
                raise ValueError("a vector is not finite")
        files, *self._columns = found
        self.files = [IndexedFile(*file[:3]) for file in files]
        self.place_files = np.repeat(np.arange(len(files)), [file[3] for file in files])
        self.place_rows = np.array(self._columns[-1])
        numbers = len(files), len(self.place_files), len(self._texts)
        self.counts = dict(zip(("files", "functions", "texts"), numbers, strict=True))
        self.words = words.Words(parts, len(self)) if parts.keys() > _PARTS else None

    def __len__(self) -> int:
        return len(self.vectors)

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


def parts_of(
    files: Sequence[tuple[IndexedFile, Sequence[Entry]]], rows: Mapping[str, int], vectors: Vectors
) -> dict[str, bytes]:
    """The parts of a new index; `rows` numbers its texts."""
    functions = [entry for _, entries in files for entry in entries]
    columns = [
        [[*astuple(file), len(entries)] for file, entries in files],
        [entry.name for entry in functions],
        [entry.start_line for entry in functions],
        [entry.end_line for entry in functions],
        [rows[entry.text] for entry in functions],
    ]
    return {
        "functions": packed(columns),
        "texts": _BETWEEN.join(text.encode() for text in rows),
        "vectors": vectors.tobytes(),
        **words.parts_of(list(rows)),
    }


def _check_columns(columns: Any, texts: int) -> None:
    """Raises ValueError unless these are files with functions, which have all of the texts."""
    if _types(columns) != [list] * 5:
        raise ValueError("its functions have other columns")
    files, names, starts, ends, rows = columns
    if not all(_types(file) == [str, str, str, int] for file in files):
        raise ValueError("its files are none")
    if not all(language in LANGUAGES and count >= 0 for _, language, _, count in files):
        raise ValueError("its files are none")
    if (number := len(names)) != sum(file[3] for file in files):
        raise ValueError("its files have other functions")
    types = [[str] * number] + 3 * [[int] * number]
    if [_types(column) for column in (names, starts, ends, rows)] != types:
        raise ValueError("its functions are none")
    if not all(1 <= start <= end for start, end in zip(starts, ends, strict=True)):
        raise ValueError("its functions have no lines")
    if set(rows) != set(range(texts)):
        raise ValueError("its functions have other texts")


def _types(value: Any) -> list[type]:
    return [type(part) for part in value] if isinstance(value, list) else []
