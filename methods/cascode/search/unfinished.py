"""What a run has worked out so far, for the run that goes on after it was stopped.

A database may have been damaged, or have come with the folder: a row counts only if it has our
seal, which names the run's model and version, too. All others are worked out anew.
"""

import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from methods.cascode.search import seal
from methods.cascode.search.store import FLOAT, Entry, Vectors, remove, unfinished_path
from shared.files import parse_json

_BESIDE = ("", "-journal", "-wal", "-shm")  # endings of the files of one database
_OF_THE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


class Unfinished:
    """Functions of files, and vectors of texts; a run that is killed loses one batch at most.

    Args:
        home: of the index. key: of runs that may use each other's results.
        precision: that the vectors are computed in.

    Raises:
        OSError: the disk is full or refuses.
    """

    def __init__(self, home: Path, key: str, precision: str) -> None:
        self._run = key.encode(), precision.encode()
        self._path = unfinished_path(home, precision)
        self.files: dict[str, list[Entry]] = {}
        self.vectors: dict[str, Vectors] = {}
        if any(_is_no_file(path) for path in self._paths()):
            self._remove()
        with _disk_errors():
            self._connection = sqlite3.connect(self._path)
            try:
                self._read()
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)

    def add_files(self, files: Mapping[str, list[Entry]]) -> None:
        """Keep the functions of files, by the files' keys."""
        self.files.update(files)
        self._keep("files", _packed_files(files))

    def add_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        """Keep the vectors of texts, by the texts' digests."""
        self.vectors.update(vectors)
        self._keep("vectors", _packed_vectors(vectors))

    def close(self) -> None:
        self._connection.close()

    def _read(self) -> None:
        self._connection.text_factory = bytes
        for table in ("files", "vectors"):
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (name BLOB UNIQUE, content BLOB, seal BLOB)"
            )
        for name, content in self._rows("files"):
            self.files[name] = [Entry(*entry) for entry in parse_json(content)]
        for name, content in self._rows("vectors"):
            self.vectors[name] = np.frombuffer(content, FLOAT)

    def _rows(self, table: str) -> Iterator[tuple[str, bytes]]:
        for row in self._connection.execute(f"SELECT name, content, seal FROM {table}"):
            if not all(isinstance(value, bytes) for value in row):
                continue
            name, content, found = row
            if found == self._seal(table, name, content):
                yield name.decode(), content

    def _keep(self, table: str, contents: Mapping[str, bytes]) -> None:
        with _disk_errors():
            try:
                self._write(table, contents)
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)

    def _write(self, table: str, contents: Mapping[str, bytes]) -> None:
        names = ((name.encode(), content) for name, content in contents.items())
        rows = [(name, content, self._seal(table, name, content)) for name, content in names]
        with self._connection:
            self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", rows)

    def _seal(self, table: str, name: bytes, content: bytes) -> bytes:
        return seal.digest(table.encode(), *self._run, name, content).encode()

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Write a new database of all that is known; the error is raised if it is the disk's."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK:
            raise error
        self.close()
        self._remove()
        self._connection = sqlite3.connect(self._path)
        self._read()
        self._write("files", _packed_files(self.files))
        self._write("vectors", _packed_vectors(self.vectors))

    def _paths(self) -> list[Path]:
        return [self._path.with_name(f"{self._path.name}{ending}") for ending in _BESIDE]

    def _remove(self) -> None:
        for path in self._paths():
            remove(path)


def _packed_files(files: Mapping[str, list[Entry]]) -> dict[str, bytes]:
    return {
        key: json.dumps([[e.name, e.start_line, e.end_line, e.text] for e in entries]).encode()
        for key, entries in files.items()
    }


def _packed_vectors(vectors: Mapping[str, Vectors]) -> dict[str, bytes]:
    return {text: row.tobytes() for text, row in vectors.items()}


def _is_no_file(path: Path) -> bool:
    """Whether something lies there that is no file of its own."""
    return os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """SQLite's errors of a full or refusing disk become an `OSError`, as those of other files."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
