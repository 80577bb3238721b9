"""A whole index, read at once: what stands in which file, its texts, vectors and words.

Parts, besides the manifest: `functions` (JSON columns: path, language, digest and number of entries
of each file; name, kind, first and last line and number of the text of each entry), `texts` (each
once, in UTF-8), `vectors` (n, d) float16, one of each entry; and those of lexicon.py.

float16, because half the size costs at most 5e-5 of a cosine (measured, 384 dimensions), far less
than computing in bfloat16 does.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from methods.cascode.extraction import SEARCHED
from methods.cascode.search import lexicon, store
from methods.cascode.search.lexicon import Words
from methods.cascode.search.store import SearchError, packed
from shared.files import parse_json

FLOAT = np.float16
KINDS = "function", "class", "constant", "module", "document"
CODE = 3  # so many kinds are code, the others documentation
KNOWN = {*SEARCHED, "markdown", "rst", "toml", "yaml", "json", "ini"}
_HERE = ".."  # root of an index that lies in the folder of its code
_TEXTS = "texts"
_PARTS = {"functions", _TEXTS, "vectors"}
_BETWEEN = b"\xff"  # texts: a byte that UTF-8 does not have

Vectors = NDArray[np.float16]


class Entry(NamedTuple):
    """One function of a file, or whatever else can be found."""

    name: str
    kind: int  # place in KINDS
    start_line: int
    end_line: int
    text: str


class IndexedFile(NamedTuple):
    path: str
    language: str
    digest: str  # of its bytes


class Place(NamedTuple):
    """Where an entry is; `row` is the number of its text."""

    file: IndexedFile
    name: str
    kind: int
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
                # Few texts are ever looked at, and a foreign index's must be checked.
                later = _TEXTS if self.own else ""
                self._read(store.read_parts(connection, self.manifest, later))
                self.stamps = store.read_stamps(connection)
            except (ValueError, RecursionError) as error:
                raise store.damaged(self.path, error) from error

    def _read(self, parts: Mapping[str, bytes]) -> None:
        """Raises ValueError unless everything that is looked up is there."""
        if self.manifest["parts"].keys() not in (_PARTS, _PARTS | lexicon.PARTS):
            raise ValueError("it has other parts")
        found = parse_json(parts["functions"])
        if not self.own:  # what is ours was checked when it was made
            self._texts = parts[_TEXTS].split(_BETWEEN)
            if not _fit(found, len(self._texts)):
                raise ValueError("its functions are none")
        files, *self._columns = found
        self.names, *_, rows = self._columns
        self.kinds, self.place_rows = np.array(self._columns[1]), np.array(rows)
        shape = len(rows), self.description["model"]["dimension"]
        self.vectors: Vectors = np.frombuffer(parts["vectors"], FLOAT).reshape(shape)
        if not (self.own or np.isfinite(self.vectors).all()):
            raise ValueError("its vectors are none")
        self.files = [IndexedFile(*file[:3]) for file in files]
        self.bounds = np.cumsum([0, *(file[3] for file in files)]).tolist()
        self.place_files = np.repeat(np.arange(len(files)), np.diff(self.bounds))
        self._size = int(self.place_rows.max()) + 1
        self.counts = {"files": len(files), "functions": len(rows), "texts": len(self)}
        self.words = Words(parts, len(self)) if "terms" in parts else None

    def __len__(self) -> int:
        """The number of different texts."""
        return self._size

    @cached_property
    def _texts(self) -> list[bytes]:
        with store.reading(self.home) as connection:
            if store.read_manifest(connection, self.home, any_tool=True) != self.manifest:
                raise SearchError(f"another index has come to {self.home}: ask again")
            try:
                return store.read_parts(connection, self.manifest)[_TEXTS].split(_BETWEEN)
            except ValueError as error:
                raise store.damaged(self.path, error) from error

    def place(self, number: int) -> Place:
        file = self.files[self.place_files[number]]
        return Place(file, *(column[number] for column in self._columns))

    def text(self, row: int) -> str:
        return self._texts[row].decode(errors="replace")

    @cached_property
    def texts(self) -> dict[str, int]:
        """The number of each text."""
        return {self.text(row): row for row in range(len(self))}

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.place_rows, kind="stable")
        return order, np.searchsorted(self.place_rows[order], np.arange(len(self) + 1))

    def places(self, row: int) -> list[int]:
        """Numbers of all places of a text, by path and line."""
        order, starts = self._by_row
        return order[starts[row] : starts[row + 1]].tolist()

    def entries(self, file: int) -> list[Entry]:
        """The entries of a file, as they were indexed."""
        first, last = self.bounds[file : file + 2]
        *columns, rows = (column[first:last] for column in self._columns)
        return list(map(Entry, *columns, map(self.text, rows)))


def parts_of(
    files: Sequence[tuple[IndexedFile, Sequence[Entry]]], vectors: Vectors, old: Index | None
) -> dict[str, bytes]:
    """The parts of a new index; words of texts that `old` has are not counted again."""
    counted = [[*file, len(entries)] for file, entries in files]
    *columns, texts = zip(*(entry for _, entries in files for entry in entries), strict=True)
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    before = np.array([old.texts.get(text, -1) for text in rows]) if old else None
    return {
        "functions": packed([counted, *columns, [rows[text] for text in texts]]),
        _TEXTS: _BETWEEN.join(text.encode() for text in rows),
        "vectors": vectors.tobytes(),
        **lexicon.count(list(rows), old.words if old else None, before),
    }


def _fit(columns: Any, texts: int) -> bool:
    """Whether these are files with entries, which have all of the texts."""
    if _types(columns) != [list] * 6:
        return False
    files, names, *numbers = columns
    kinds, starts, ends, rows = numbers
    return (
        all(_types(file) == [str, str, str, int] for file in files)
        and all(language in KNOWN and count >= 0 for _, language, _, count in files)
        and sum(file[3] for file in files) == len(names)
        and _types(names) == [str] * len(names)
        and all(_types(column) == [int] * len(names) for column in numbers)
        and all(0 <= kind < len(KINDS) for kind in kinds)
        and all(1 <= start <= end for start, end in zip(starts, ends, strict=True))
        and set(rows) == set(range(texts))
    )


def _types(value: Any) -> list[type]:
    return [type(part) for part in value] if isinstance(value, list) else []
