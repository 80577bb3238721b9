"""An index on disk: whole or not there, checked when read, and what an unfinished run leaves.

    .tenfold-search/
        index.json          what the index was made of, size and SHA-256 of its files, our seal
        <digest>/           the files; the name is the digest of index.json's other content
            functions.json  where every function is, by path and line
            texts.bin       what was encoded, once for equal functions; texts.npy: where each ends
            vectors.npy     (n, d) float16, one row a text
            words.*         BM25
            graph.faiss     of HNSW and IVF-PQ
        unfinished-*.db     functions and vectors of a run that was stopped, one transaction a batch
        CACHEDIR.TAG        tells backups that all this can be made again, and us that it is ours
        lock

Such a folder may have come with somebody's code. It is read with distrust unless it has our seal,
and no link in it is followed.

float16, because half the size costs at most 5e-5 of a cosine (measured, 384 dimensions), far less
than computing in bfloat16 does.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.cascode.extraction import LANGUAGES
from methods.cascode.search import seal, words
from methods.cascode.search.arrays import map_array, rises
from methods.cascode.search.vectors import KINDS
from shared.files import (
    LockedError,
    open_regular,
    own_folder,
    parse_json,
    read_json,
    remove_unfinished,
    replacing,
    sync,
)
from shared.files import locked as lock_held

FOLDER = ".tenfold-search"
MANIFEST = "index.json"
FORMAT = 2  # of the files; rises with every change of what is in them
FLOAT = np.float16
COMPUTED = ("float32", "bfloat16")  # precisions of vectors
POOLINGS = ("mean", "cls", "pooler")
GRAPH = "graph.faiss"
AGAIN = "run `tenfold-search index` on the folder again"
FOREIGN = "was not made on this machine"
_HERE = ".."  # root of an index that lies in the folder of its code
_FUNCTIONS, _TEXTS, _ENDS, _VECTORS = "functions.json", "texts.bin", "texts.npy", "vectors.npy"
_MANIFEST_LIMIT = 1_000_000  # bytes
_NUMBERS = ("place_files", "starts", "ends", "rows")
_NEW = "new"
_UNFINISHED = "unfinished-"
_FOLDER_NAME = re.compile("[0-9a-f]{16}")
_TAG = "CACHEDIR.TAG"
_MARKS = {  # the tag comes last: where it is whole, all are
    ".gitignore": b"*\n",
    _TAG: b"Signature: 8a477f597d28d172789f06886806bc55\n# An index of tenfold-search.\n",
}

_DESCRIPTION = {
    "root": str,
    "tool": str,
    "model": {
        "source": str,
        "precision": str,
        "pooling": str,
        "normalize": bool,
        "name": str,
        "fingerprint": str,
        "dimension": int,
    },
    "text": str,
    "kind": str,
    "limit": int,
}
_COUNTS = {"files": int, "functions": int, "texts": int}
_MEASURES = {"bytes": int, "sha256": str}

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

    Attributes:
        own: whether it has the seal of this machine. A foreign one can say anything: it gives no
            file to a library that trusts it, and shows code of the folder that it lies in only.

    Raises:
        SearchError: there is none, another version of the tool made it, or it is a foreign one of
            another folder.
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
        self.own = is_own(manifest)
        self.description = Description(**manifest["description"])
        self.counts: Mapping[str, int] = manifest["counts"]
        self.files_bytes = sum(file["bytes"] for file in manifest["files"].values())
        self.has_words = words.TERMS in manifest["files"]
        if not self.own and self.description.root != _HERE:
            raise SearchError(
                f"the index in {self.home} {FOREIGN}, and is not of the folder that it lies in: "
                "run `tenfold-search index` on the folder of the code"
            )
        self.root = Path(os.path.normpath(self.home / self.description.root))
        for name, expected in manifest["files"].items():
            _check(self.folder / name, expected)
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise damaged(self.folder, error) from error

    def _read(self) -> None:
        columns = read_json(self.folder / _FUNCTIONS)
        if not (isinstance(columns, dict) and columns.keys() == {"files", "names", *_NUMBERS}):
            raise ValueError(f"{_FUNCTIONS} has other columns")
        if not (_are_files(columns["files"]) and _are_texts(columns["names"])):
            raise ValueError(f"{_FUNCTIONS} lacks names")
        self.files = [IndexedFile(*file) for file in columns["files"]]
        self._names: list[str] = columns["names"]
        numbers = [np.array(columns[key]) for key in _NUMBERS]
        if not all(column.dtype == np.int64 and column.ndim == 1 for column in numbers):
            raise ValueError(f"{_FUNCTIONS} lacks numbers")
        self.place_files, self._starts, self._ends, self.place_rows = numbers
        self.vectors: Vectors = map_array(self.folder / _VECTORS, {"float16"}, 2)
        self._text_ends = map_array(self.folder / _ENDS, {"int64"})
        with open_regular(self.folder / _TEXTS, follow_links=False) as file:
            self._texts = np.memmap(file, mode="r")
        self._check_content(numbers)

    def _check_content(self, numbers: Sequence[NDArray[np.int64]]) -> None:
        """Raises ValueError unless everything that is looked up is there."""
        files, functions, texts = (self.counts[key] for key in _COUNTS)
        lengths = {len(self._names), *map(len, numbers)}
        if (len(self.files), lengths) != (files, {functions}):
            raise ValueError(f"{_FUNCTIONS} has another length")
        shape = texts, self.description.model["dimension"]
        if self.vectors.shape != shape or len(self._text_ends) != texts:
            raise ValueError("there are other vectors than texts")
        if not (
            rises(self.place_files, 0, files - 1)
            and 0 <= self.place_rows.min() <= self.place_rows.max() < texts
            and np.bincount(self.place_rows, minlength=texts).all()
            and (self._starts >= 1).all()
            and (self._ends >= self._starts).all()
            and rises(self._text_ends, 0, len(self._texts))
        ):
            raise ValueError(f"numbers in {_FUNCTIONS} or {_ENDS} lead nowhere")
        if not (self.own or np.isfinite(self.vectors).all()):  # ours were checked when computed
            raise ValueError("a vector is not finite")

    def __len__(self) -> int:
        return len(self.vectors)

    def place(self, number: int) -> Place:
        file = self.files[self.place_files[number]]
        lines = int(self._starts[number]), int(self._ends[number])
        return Place(file, self._names[number], *lines, int(self.place_rows[number]))

    def text(self, row: int) -> str:
        start = self._text_ends[row - 1] if row else 0
        return self._texts[start : self._text_ends[row]].tobytes().decode(errors="replace")

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
        if home.is_symlink():
            raise OSError(errno.ELOOP, "the folder is a link: name the one that it leads to")
        with open_regular(path, follow_links=False) as file:
            manifest = parse_json(file.read(_MANIFEST_LIMIT))
        layout, tool = manifest["format"], manifest["description"]["tool"]
        if manifest["folder"] != _folder_name(_content(manifest)):
            raise ValueError("it is not what was written")
        if not (isinstance(layout, int) and isinstance(tool, str)):
            raise ValueError("it names no version")
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(
            f"no index in {home}: run `tenfold-search index DIR`, or name the folder that was "
            "indexed with --dir, or its index with --index"
        ) from None
    except OSError as error:
        raise SearchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    if layout != FORMAT or not (any_tool or tool == tool_version()):
        raise SearchError(
            f"{path} was built by another version of the tool ({tool}, format {layout}; this is "
            f"{tool_version()}, format {FORMAT}): {AGAIN}"
        )
    try:
        _check_manifest(manifest)
    except ValueError as error:
        raise damaged(path, error) from error
    return manifest


def is_own(manifest: Mapping[str, Any]) -> bool:
    """Whether this user wrote it on this machine, and nobody changed it."""
    return manifest.get("seal") == _seal(_content(manifest))


def damaged(path: Path, error: Exception) -> DamagedIndexError:
    """What is raised where a file's content is not what is written there."""
    return DamagedIndexError(f"{path} is damaged ({error}): {AGAIN}")


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    for key, expected in (("description", _DESCRIPTION), ("counts", _COUNTS)):
        if not _fits(manifest.get(key), expected):
            raise ValueError(f"its {key} lacks something or has too much")
    model, kind = manifest["description"]["model"], manifest["description"]["kind"]
    if model["precision"] not in COMPUTED or model["pooling"] not in POOLINGS:
        raise ValueError("no model computes so")
    if kind not in KINDS[1:]:
        raise ValueError(f"no index is {kind!r}")
    files = manifest.get("files")
    if not (isinstance(files, dict) and all(_fits(file, _MEASURES) for file in files.values())):
        raise ValueError("it does not measure its files")
    always = {_FUNCTIONS, _TEXTS, _ENDS, _VECTORS} | ({GRAPH} if kind != "flat" else set())
    if files.keys() not in (always, always | words.FILES):
        raise ValueError("it names files that lie elsewhere, or lacks some")


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value has these keys, and these types at their places."""
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(_fits(value[key], inner) for key, inner in expected.items())
        )
    return type(value) is expected and (expected is not int or 0 <= value < 2**63)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_files(values: Any) -> bool:
    """Whether these are paths, known languages and digests."""
    return isinstance(values, list) and all(
        _are_texts(value) and len(value) == 3 and value[1] in LANGUAGES for value in values
    )


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
    remove(new)  # of a killed run
    new.mkdir()
    try:
        write(new)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "description": asdict(description),
            "counts": counts,
            "files": {path.name: _measure(path) for path in sorted(new.iterdir())},
        }
        manifest |= {"folder": _folder_name(manifest), "seal": _seal(manifest)}
        folder = home / manifest["folder"]
        remove(folder)  # damaged or foreign, else nothing had been written
        for path in (*new.iterdir(), new):
            sync(path)
        new.rename(folder)
        with replacing(home / MANIFEST) as file:
            file.write(_dumps(manifest))
    except BaseException:
        remove(new)
        raise
    return sum(file["bytes"] for file in manifest["files"].values())


def tidy(home: Path) -> None:
    """Leave nothing but the index: no older one, and nothing of runs that were stopped."""
    folder = read_manifest(home)["folder"]
    for path in home.iterdir():
        older = path.name != folder and _FOLDER_NAME.fullmatch(path.name)
        if older or path.name == _NEW or path.name.startswith(_UNFINISHED):
            remove(path)
    remove_unfinished(home)


def remove(path: Path) -> None:
    """Remove whatever lies there, if anything; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_functions(
    folder: Path, files: Iterable[tuple[IndexedFile, list[Entry]]], rows: Mapping[str, int]
) -> None:
    """functions.json, texts.bin and texts.npy; `rows` numbers the texts."""
    columns: dict[str, list[Any]] = {key: [] for key in ("files", "names", *_NUMBERS)}
    for number, (file, entries) in enumerate(files):
        columns["files"].append([file.path, file.language, file.digest])
        for entry in entries:
            columns["names"].append(entry.name)
            columns["place_files"].append(number)
            columns["starts"].append(entry.start_line)
            columns["ends"].append(entry.end_line)
            columns["rows"].append(rows[entry.text])
    (folder / _FUNCTIONS).write_bytes(_dumps(columns))
    encoded = [text.encode() for text in rows]
    (folder / _TEXTS).write_bytes(b"".join(encoded))
    np.save(folder / _ENDS, np.cumsum([len(text) for text in encoded], dtype=np.int64))


def precision_of(home: Path, source: str) -> str | None:
    """The precision that vectors of the model `source` were computed in, in this index or the run
    that was stopped; None if there are none.

    A model measures which is faster; going on with another one would mix two kinds of rounding.
    """
    for precision in COMPUTED:
        if os.path.isfile(unfinished_path(home, precision)):
            return precision
    try:
        manifest = read_manifest(home, any_tool=True)
    except SearchError:
        return None
    model = manifest["description"]["model"]
    return model["precision"] if is_own(manifest) and model["source"] == source else None


def unfinished_path(home: Path, precision: str) -> Path:
    """Where runs keep what they have computed in this precision; only this user can name it."""
    place = os.fsencode(os.path.realpath(home))
    name = seal.digest(b"unfinished", str(FORMAT).encode(), place, precision.encode())
    return home / f"{_UNFINISHED}{name}.db"


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Only one process at a time writes to an index.

    Raises:
        SearchError: another one does, or the folder holds other things.
        OSError: it cannot be written to.
    """
    own_folder(home, 0o700)
    _mark(home)
    _make_private(home)
    try:
        with lock_held(home / "lock"):
            yield
    except LockedError as holder:
        raise SearchError(
            f"another `tenfold-search index` is writing to {home} ({holder}): wait for it, or use "
            "--index PATH"
        ) from None


def _mark(home: Path) -> None:
    """Mark an empty folder as an index's; marks of a process that was killed here are completed.

    Raises:
        SearchError: it holds other things.
    """
    with suppress(FileNotFoundError):
        if _head(home / _TAG) == _MARKS[_TAG]:
            return
    for path in home.iterdir():
        if path.name not in _MARKS or not _MARKS[path.name].startswith(_head(path)):
            raise SearchError(f"{home} holds other things: --index names a folder of its own")
    for name, content in _MARKS.items():
        (home / name).unlink(missing_ok=True)
        with open(home / name, "xb") as file:
            file.write(content)


def _head(path: Path) -> bytes:
    with open_regular(path, follow_links=False) as file:
        return file.read(1_000)


def _make_private(home: Path) -> None:
    """An index tells what its code does, which others may not be allowed to read."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(PermissionError):  # somebody else's, or of a file system without modes
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


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


def _content(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in ("folder", "seal")}


def _folder_name(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumps(content)).hexdigest()[:16]


def _seal(content: Mapping[str, Any]) -> str:
    return seal.digest(b"index", _dumps(content))


def _measure(path: Path) -> dict[str, Any]:
    content = hashlib.sha256()
    with open_regular(path, follow_links=False) as file:
        while part := file.read(1 << 20):
            content.update(part)
        return {"bytes": file.tell(), "sha256": content.hexdigest()}


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
