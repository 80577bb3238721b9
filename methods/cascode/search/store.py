"""An index on disk: whole or not there, checked when read, and what an unfinished run leaves.

    .tenfold-search/
        index.json          what the index was made of, and size and SHA-256 of its files
        <digest>/           the files; the name is the digest of index.json's other content
            functions.json  where every function is, by path and line
            texts.bin       what was encoded, once for equal functions; texts.npy: where each ends
            vectors.npy     (n, d) float16, one row a text
            words.*         BM25
            graph.faiss     of HNSW and IVF-PQ
        unfinished-*.db     functions and vectors of a run that was stopped, one transaction a batch
        CACHEDIR.TAG        tells backups that all this can be made again, and us that it is ours
        lock

float16, because half the size costs at most 5e-5 of a cosine (measured, 384 dimensions), far less
than computing in bfloat16 does.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

FOLDER = ".tenfold-search"
MANIFEST = "index.json"
FORMAT = 1  # of the files; rises with every change of what is in them
FLOAT = np.float16
AGAIN = "run `tenfold-search index` on the folder again"
_NEW = "new"
_UNFINISHED = "unfinished-"
_FOLDER_NAME = re.compile("[0-9a-f]{16}")
_TAG = "CACHEDIR.TAG"
_MARKS = {  # the tag comes last: where it is whole, all are
    ".gitignore": b"*\n",
    _TAG: b"Signature: 8a477f597d28d172789f06886806bc55\n# An index of tenfold-search.\n",
}

Vectors = NDArray[np.float16]


class SearchError(RuntimeError):
    """The tool cannot do what it was asked for; the message says why and what to do."""


class DamagedIndexError(SearchError):
    """A file of the index is not what was written."""


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


@dataclass(frozen=True)
class Description:
    """What an index is made of: equal descriptions and equal files make equal indexes.

    Attributes:
        root: the folder that was indexed, ".." where the index lies in it.
        tool: see `tool_version`. model: its source, name, fingerprint, dimension and precision.
        text: "both" or "code". kind: of the vector index, as built. limit: bytes of a file.
    """

    root: str
    tool: str
    model: Mapping[str, Any]
    text: str
    kind: str
    limit: int


class Index:
    """A whole index, opened for reading.

    Args:
        home: the folder that holds `index.json`.
        any_tool: whether another version of the tool may have made it, in the same format.

    Raises:
        SearchError: there is none, or another version of the tool made it.
        DamagedIndexError: a file is missing, cut off or changed.
    """

    def __init__(self, home: Path, any_tool: bool = False) -> None:
        self.home = home
        manifest = read_manifest(home, any_tool)
        try:
            self._open(manifest)
        except DamagedIndexError:
            newer = read_manifest(home, any_tool)
            if newer == manifest:
                raise
            self._open(newer)  # a run has replaced the index just now

    def _open(self, manifest: Mapping[str, Any]) -> None:
        self.folder = self.home / manifest["folder"]
        self.description = Description(**manifest["description"])
        self.counts: Mapping[str, int] = manifest["counts"]
        self.files_bytes = sum(file["bytes"] for file in manifest["files"].values())
        self.root = Path(os.path.normpath(self.home / self.description.root))
        for name, expected in manifest["files"].items():
            _check(self.folder / name, expected)
        columns = json.loads((self.folder / "functions.json").read_text())
        self.files = [IndexedFile(*file) for file in columns["files"]]
        self._names: list[str] = columns["names"]
        self.place_files, self._starts, self._ends, self.place_rows = (
            np.array(columns[key], np.int64) for key in ("place_files", "starts", "ends", "rows")
        )
        self.vectors: Vectors = np.load(self.folder / "vectors.npy", mmap_mode="r")
        self._text_ends = np.load(self.folder / "texts.npy")
        self._texts = np.memmap(self.folder / "texts.bin", mode="r")

    def __len__(self) -> int:
        return len(self.vectors)

    def place(self, number: int) -> Place:
        file = self.files[self.place_files[number]]
        lines = int(self._starts[number]), int(self._ends[number])
        return Place(file, self._names[number], *lines, int(self.place_rows[number]))

    def text(self, row: int) -> str:
        start = self._text_ends[row - 1] if row else 0
        return self._texts[start : self._text_ends[row]].tobytes().decode()

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.place_rows, kind="stable")
        return order, np.searchsorted(self.place_rows[order], np.arange(len(self) + 1))

    def places(self, row: int) -> list[int]:
        """Numbers of all places of a text, by path and line."""
        order, starts = self._by_row
        return order[starts[row] : starts[row + 1]].tolist()

    def entries(self) -> Iterator[tuple[IndexedFile, list[Entry]]]:
        """Every file with its functions, as they were indexed."""
        ends = np.searchsorted(self.place_files, np.arange(len(self.files)), side="right")
        start = 0
        for file, end in zip(self.files, ends.tolist(), strict=True):
            places = [self.place(number) for number in range(start, end)]
            yield (
                file,
                [Entry(p.name, p.start_line, p.end_line, self.text(p.row)) for p in places],
            )
            start = end


def read_manifest(home: Path, any_tool: bool = False) -> dict[str, Any]:
    """Content of `index.json`.

    Raises:
        SearchError: as `Index`.
    """
    path = home / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        layout, tool = manifest["format"], manifest["description"]["tool"]
        content = {key: value for key, value in manifest.items() if key != "folder"}
        if manifest["folder"] != _folder_name(content):
            raise ValueError("it is not what was written")
        if not all(Path(name).name == name for name in manifest["files"]):
            raise ValueError("it names files that lie elsewhere")
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(
            f"no index in {home}: run `tenfold-search index DIR`, or name the folder that was "
            "indexed with --dir, or its index with --index"
        ) from None
    except OSError as error:
        raise SearchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedIndexError(f"{path} is damaged ({error}): {AGAIN}") from error
    if layout != FORMAT or not (any_tool or tool == tool_version()):
        raise SearchError(
            f"{path} was built by another version of the tool ({tool}, format {layout}; this is "
            f"{tool_version()}, format {FORMAT}): {AGAIN}"
        )
    return manifest


def publish(
    home: Path,
    description: Description,
    counts: Mapping[str, int],
    write: Callable[[Path], None],
) -> int:
    """Make what `write` puts into an empty folder the index; until then the old one stays.

    Returns: the size of its files in bytes.

    Raises:
        OSError: the disk is full or refuses; the old index is untouched.
    """
    new = home / _NEW
    shutil.rmtree(new, ignore_errors=True)  # of a killed run
    new.mkdir()
    try:
        write(new)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "description": asdict(description),
            "counts": counts,
            "files": {path.name: _measure(path) for path in sorted(new.iterdir())},
        }
        manifest["folder"] = _folder_name(manifest)
        folder = home / manifest["folder"]
        shutil.rmtree(folder, ignore_errors=True)  # damaged, else nothing had been written
        for path in (*new.iterdir(), new):
            _sync(path)
        new.rename(folder)
        (home / "index.tmp").write_bytes(_dumps(manifest))
        _sync(home / "index.tmp")
        os.replace(home / "index.tmp", home / MANIFEST)
        _sync(home)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        (home / "index.tmp").unlink(missing_ok=True)
        raise
    return sum(file["bytes"] for file in manifest["files"].values())


def tidy(home: Path) -> None:
    """Leave nothing but the index: no older one, and nothing of runs that were stopped."""
    folder = read_manifest(home)["folder"]
    for path in home.iterdir():
        if path.is_dir() and path.name != folder and _FOLDER_NAME.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_UNFINISHED):
            path.unlink()


def write_functions(
    folder: Path, files: Iterable[tuple[IndexedFile, list[Entry]]], rows: Mapping[str, int]
) -> None:
    """functions.json, texts.bin and texts.npy; `rows` numbers the texts."""
    columns: dict[str, list[Any]] = {
        key: [] for key in ("files", "names", "place_files", "starts", "ends", "rows")
    }
    for number, (file, entries) in enumerate(files):
        columns["files"].append([file.path, file.language, file.digest])
        for entry in entries:
            columns["names"].append(entry.name)
            columns["place_files"].append(number)
            columns["starts"].append(entry.start_line)
            columns["ends"].append(entry.end_line)
            columns["rows"].append(rows[entry.text])
    (folder / "functions.json").write_bytes(_dumps(columns))
    encoded = [text.encode() for text in rows]
    (folder / "texts.bin").write_bytes(b"".join(encoded))
    np.save(folder / "texts.npy", np.cumsum([len(text) for text in encoded], dtype=np.int64))


class Unfinished:
    """What a run has worked out so far; a run that is killed loses one batch at most.

    Args:
        home: of the index. key: of runs that may use each other's results.
        precision: that the vectors are computed in; see `precision_of`.

    Raises:
        OSError: the disk is full or refuses.
    """

    def __init__(self, home: Path, key: str, precision: str) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = home / f"{_UNFINISHED}{precision}-{name}.db"
        self.files: dict[str, list[Entry]] = {}
        self.vectors: dict[str, Vectors] = {}
        with _disk_errors():
            try:
                self._open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.close()
                for damaged in home.glob(f"{path.name}*"):
                    damaged.unlink()
                self._open(path)

    def _open(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        execute = self._connection.execute
        execute("CREATE TABLE IF NOT EXISTS files (key TEXT UNIQUE, entries TEXT)")
        execute("CREATE TABLE IF NOT EXISTS vectors (text TEXT UNIQUE, row BLOB)")
        files, vectors = execute("SELECT * FROM files"), execute("SELECT * FROM vectors")
        self.files = {key: [Entry(*e) for e in json.loads(entries)] for key, entries in files}
        self.vectors = {text: np.frombuffer(row, FLOAT) for text, row in vectors}

    def add_files(self, files: Mapping[str, list[Entry]]) -> None:
        """Keep the functions of files, by the files' keys."""
        rows = [
            (key, json.dumps([[e.name, e.start_line, e.end_line, e.text] for e in entries]))
            for key, entries in files.items()
        ]
        self._insert("files", rows)
        self.files.update(files)

    def add_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        """Keep the vectors of texts, by the texts' digests."""
        self._insert("vectors", [(text, row.tobytes()) for text, row in vectors.items()])
        self.vectors.update(vectors)

    def close(self) -> None:
        self._connection.close()

    def _insert(self, table: str, rows: list[tuple[str, Any]]) -> None:
        with _disk_errors(), self._connection:
            self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)


def precision_of(home: Path, source: str) -> str | None:
    """The precision that vectors of the model `source` were computed in, in this index or the run
    that was stopped; None if there are none.

    A model measures which is faster; going on with another one would mix two kinds of rounding.
    """
    for path in sorted(home.glob(f"{_UNFINISHED}*")):
        return path.name.split("-")[1]
    try:
        model = json.loads((home / MANIFEST).read_bytes())["description"]["model"]
        return model["precision"] if model["source"] == source else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _disk_errors() -> Iterator[None]:
    """SQLite's errors of a full or refusing disk become an `OSError`, as those of other files."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(str(error)) from error


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Only one process at a time writes to an index.

    Raises:
        SearchError: another one does, or the folder holds other things.
        OSError: it cannot be written to.
    """
    home.mkdir(parents=True, exist_ok=True)
    _mark(home)
    lock = FileLock(home / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SearchError(
            f"another `tenfold-search index` is writing to {home}: wait for it, or use --index PATH"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _mark(home: Path) -> None:
    """Mark an empty folder as an index's; marks of a process that was killed here are completed.

    Raises:
        SearchError: it holds other things.
    """
    if (home / _TAG).is_file() and (home / _TAG).read_bytes() == _MARKS[_TAG]:
        return
    for path in home.iterdir():
        if path.name not in _MARKS or not _MARKS[path.name].startswith(path.read_bytes()):
            raise SearchError(f"{home} holds other things: --index names a folder of its own")
    for name, content in _MARKS.items():
        (home / name).write_bytes(content)


@cache
def tool_version() -> str:
    """Release, and a digest of the code that decides what an index holds."""
    package = Path(__file__).resolve().parent.parent
    content = hashlib.sha256()
    for source in sorted((package / "extraction").rglob("*.py")):
        content.update(source.read_bytes())
    for name in ("cleaning", "lexical", "search/indexing", "search/vectors", "search/walking"):
        content.update((package / f"{name}.py").read_bytes())
    for distribution in metadata.distributions():
        if distribution.name.startswith("tree-sitter"):
            content.update(f"{distribution.name} {distribution.version}".encode())
    return f"{metadata.version('tenfold')}+{content.hexdigest()[:8]}"


def _folder_name(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumps(manifest)).hexdigest()[:16]


def _measure(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        found = _measure(path)
    except OSError as error:
        raise DamagedIndexError(f"cannot read {path} ({error.strerror}): {AGAIN}") from error
    if found != expected:
        how = "cut off" if found["bytes"] < expected["bytes"] else "changed"
        raise DamagedIndexError(f"{path} is damaged, it was {how} after it was written: {AGAIN}")


def _dumps(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
