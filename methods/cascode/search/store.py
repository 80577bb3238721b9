"""The folder of an index and the one SQLite database in it.

    .tenfold-search/
        index.db        two tables:
            parts       the index: first `manifest`, which says what it was made of and holds the
                        digests of the other parts and our seal; what those are, index.py says
            kept        functions and vectors of a run that was stopped, a row each, with our seal;
                        and the stamps of the files that were read, which no other machine has
        CACHEDIR.TAG    tells backups that all this can be made again, and us that it is ours
        lock

SQLite's transactions make every change whole: a run that is killed leaves the old index and all
batches that it committed. Such a folder may have come with somebody's code. It is read with
distrust unless it has our seal, and no link in it is followed.
"""

import errno
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from methods.cascode.search import seal
from shared import files
from shared.files import LockedError, UnsafeFileError, open_own, open_regular, parse_json

FOLDER, DATABASE = ".tenfold-search", "index.db"
FORMAT = 4  # of the database; rises with every change of what is in it
COMPUTED = ("float32", "bfloat16")  # precisions of vectors
POOLINGS = ("mean", "cls", "pooler")
AGAIN = "run `tenfold-search index` on the folder again"
FOREIGN = "was not made on this machine"
PIECE = 1 << 29  # bytes of a row; SQLite takes at most 1e9
_TABLES = [
    "CREATE TABLE parts (name TEXT, content BLOB)",
    "CREATE TABLE kept (kind TEXT, name TEXT, content BLOB, seal TEXT)",
]
_PAGE = 16_384  # bytes; a vector or a text of usual size fits into one
_WAIT = 60.0  # seconds that a reader waits for a commit
_NAMES_A_FILE = bytes.fromhex("d9d505f920a163d7")  # ends a journal; SQLite deletes what it names
_OF_THE_DISK = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("BUSY", "CANTOPEN", "FULL", "IOERR")
}
_TAG, _STAMPS, _RUN = "CACHEDIR.TAG", "stamps", "run"
_MARKS = {  # the tag comes last: where it is whole, all are
    ".gitignore": b"*\n",
    _TAG: b"Signature: 8a477f597d28d172789f06886806bc55\n# An index of tenfold-search.\n",
}
_MODEL: dict[str, type] = dict.fromkeys(
    ("source", "precision", "pooling", "name", "fingerprint"), str
)
_MODEL |= {"normalize": bool, "dimension": int}
# Equal descriptions and equal files make equal indexes. `root` is ".." where the index lies in it,
# `text` one of indexing.TEXTS, `limit` bytes of a file, `scope` what of the root is wanted.
_SCOPE = dict.fromkeys(("folders", "include", "exclude"), list)  # of str
_DESCRIPTION: dict[str, Any] = {"root": str, "tool": str, "text": str, "limit": int}
_DESCRIPTION |= {"model": _MODEL, "scope": _SCOPE}
_MANIFEST = {"description": _DESCRIPTION, "parts": dict, "seal": str}


class SearchError(RuntimeError):
    """The tool cannot do what it was asked for; the message says why and what to do."""


class StoppedError(SearchError):
    """No run has ended yet; the next one goes on."""


class Writer:
    """The database while a run writes to it; one that is damaged, or not ours, is made anew. Raises
    sqlite3.Error where the disk refuses, and OSError where no regular file lies."""

    def __init__(self, home: Path) -> None:
        self._path = home / DATABASE
        open_own(self._path).close()
        _check_files(self._path)
        self._connection = _connect(self._path)
        try:
            self._begin()
        except sqlite3.DatabaseError as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK:
                raise
            for ending in ("", "-journal"):
                Path(f"{self._path}{ending}").unlink(missing_ok=True)
            self._connection = _connect(self._path)
            self._begin()

    def _begin(self) -> None:
        if not _pragma(self._connection, "user_version"):  # it is new
            self._connection.executescript(
                # Freed pages are given back at each commit.
                f"PRAGMA page_size = {_PAGE}; PRAGMA auto_vacuum = FULL; BEGIN; "
                f"{';'.join(_TABLES)}; PRAGMA user_version = {FORMAT}; COMMIT"
            )
        if _pragma(self._connection, "user_version") != FORMAT:
            raise sqlite3.DatabaseError("it has another format")
        _check_tables(self._connection)
        with self._connection:  # one that can only be read is of no use
            self._connection.execute("DELETE FROM kept WHERE kind = ''")

    def way(self, model: str, choose: Callable[[], str]) -> str:
        """How a stopped run has encoded for this model, else as is chosen now: another precision
        would mix two kinds of rounding."""
        name = seal.digest(b"run", model.encode())
        if name not in (kept := self.kept(_RUN)):
            kept[name] = choose().encode()
            self.keep(_RUN, {name: kept[name]})
        return kept[name].decode()

    def stopped(self) -> bool:
        """Whether a run of before has not ended."""
        return bool(self.kept(_RUN))

    def kept(self, kind: str) -> dict[str, bytes]:
        """What an earlier run kept of a kind, by names."""
        return _own_rows(self._connection, kind)

    def keep(self, kind: str, contents: Mapping[str, bytes]) -> None:
        """Commit a batch by names. A kind names all on which its contents depend."""
        with self._connection:
            self._keep(kind, contents)

    def _keep(self, kind: str, contents: Mapping[str, bytes]) -> None:
        rows = [(kind, n, part, _seal_row(kind, n, part)) for n, part in contents.items()]
        self._connection.executemany("INSERT INTO kept VALUES (?, ?, ?, ?)", rows)

    def forget(self, stamps: Mapping[str, Any]) -> None:
        """Leave nothing but the index that is there, and the stamps of its files."""
        with self._connection:
            self._connection.execute("DELETE FROM kept")
            self._keep(_STAMPS, {_STAMPS: packed(stamps)})

    def publish(
        self, description: Mapping[str, Any], parts: Mapping[str, bytes], stamps: Mapping[str, Any]
    ) -> int:
        """Make these parts the index, at once; nothing else stays. Returns its size in bytes."""
        manifest = {"description": description, "parts": _digests(parts)}
        whole = {"manifest": packed(manifest | {"seal": _seal(manifest)}), **parts}
        pieces = (
            (name, memoryview(part)[start : start + PIECE])
            for name, part in whole.items()
            for start in range(0, len(part), PIECE)
        )
        with self._connection:
            self._connection.execute("DELETE FROM kept")
            self._connection.execute("DELETE FROM parts")
            self._connection.executemany("INSERT INTO parts VALUES (?, ?)", pieces)
            self._keep(_STAMPS, {_STAMPS: packed(stamps)})
        return self._path.stat().st_size

    def close(self) -> None:
        self._connection.close()


@contextmanager
def reading(home: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to an index, in a transaction that sees one state of it."""
    path = home / DATABASE
    try:
        if home.is_symlink():
            raise OSError(errno.ELOOP, "the folder is a link: name the one that it leads to")
        _check_files(path)
    except (FileNotFoundError, NotADirectoryError):
        hint = "run `tenfold-search index DIR`, or name its folder with --dir or --index"
        raise SearchError(f"no index in {home}: {hint}") from None
    except OSError as error:
        raise SearchError(f"cannot read {error.filename or path}: {error.strerror}") from error
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN")
            if (version := _pragma(connection, "user_version")) not in (0, FORMAT):
                raise _another_version(path, f"format {version}")
            _check_tables(connection)
            yield connection
    except sqlite3.Error as error:
        raise damaged(path, error) from error


def read_manifest(
    connection: sqlite3.Connection, home: Path, any_tool: bool = False
) -> dict[str, Any]:
    """What an index was made of; StoppedError if it is not finished, SearchError if damaged."""
    row = connection.execute("SELECT content FROM parts ORDER BY rowid LIMIT 1").fetchone()
    if row is None:
        raise StoppedError(f"no index in {home} yet: a run was stopped; {AGAIN} to go on")
    try:
        manifest: Any = parse_json(row[0]) if isinstance(row[0], bytes) else None
        if not _fits(manifest, _MANIFEST):
            raise ValueError("its manifest lacks something or has too much")
        found = manifest["description"]
        if found["model"]["precision"] not in COMPUTED or found["model"]["pooling"] not in POOLINGS:
            raise ValueError("no model computes so")
    except (ValueError, RecursionError) as error:
        raise damaged(home / DATABASE, error) from error
    if not (any_tool or found["tool"] == tool_version()):
        raise _another_version(home / DATABASE, found["tool"])
    return manifest


def read_parts(
    connection: sqlite3.Connection, manifest: Mapping[str, Any], leave_out: str = ""
) -> dict[str, bytes]:
    """The other parts of an index but one; ValueError if they are not what was written."""
    pieces: dict[str, list[bytes]] = {}
    query = "SELECT name, content FROM parts WHERE rowid > 1 AND name <> ?"
    for name, content in connection.execute(query, (leave_out,)):
        if not isinstance(content, bytes):
            raise ValueError("a part is none")
        pieces.setdefault(name, []).append(content)
    parts = {name: b"".join(found) for name, found in pieces.items()}
    expected = {name: found for name, found in manifest["parts"].items() if name != leave_out}
    if _digests(parts) != expected:
        raise ValueError("it was changed after it was written")
    return parts


def is_own(manifest: Mapping[str, Any]) -> bool:
    """Whether this user wrote it on this machine, and nobody changed it."""
    return manifest["seal"] == _seal(manifest)


def read_stamps(connection: sqlite3.Connection) -> dict[str, Any]:
    """What `Writer.publish` was given; nothing where another machine wrote it."""
    content = _own_rows(connection, _STAMPS).get(_STAMPS)
    return {} if content is None else parse_json(content)


def packed(content: Any) -> bytes:
    """JSON as it is stored."""
    return json.dumps(content, separators=(",", ":")).encode()


def damaged(path: Path, error: Exception) -> SearchError:
    """What is raised where a database holds something else than what was written there."""
    return SearchError(f"{path} is damaged ({error}): {AGAIN}")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Let only one process at a time write to an index, in a folder that holds nothing else."""
    files.own_folder(home, 0o700)
    _mark(home)
    with suppress(PermissionError):  # somebody else's, or of a file system without modes
        home.chmod(0o700)  # an index tells what its code does, which others may not know
    try:
        with files.locked(home / "lock"):
            yield
    except LockedError as holder:
        said = f"another `tenfold-search index` is writing to {home} ({holder})"
        raise SearchError(f"{said}: wait for it, or use --index PATH") from None


def _mark(home: Path) -> None:
    """Mark an empty folder as an index's; marks of a process that was killed are completed."""
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


def _another_version(path: Path, version: str) -> SearchError:
    versions = f"{version}; this is {tool_version()}, format {FORMAT}"
    return SearchError(f"{path} was built by another version of the tool ({versions}): {AGAIN}")


def _connect(path: Path) -> sqlite3.Connection:
    """A database that is not trusted; it is made if there is none."""
    connection = sqlite3.connect(path, timeout=_WAIT)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _check_tables(connection: sqlite3.Connection) -> None:
    # A view or a trigger could do anything, and a tree with a circle has no end.
    if connection.execute("SELECT sql FROM sqlite_schema").fetchall() != [(t,) for t in _TABLES]:
        raise sqlite3.DatabaseError("it has other tables")
    if _pragma(connection, "journal_mode") != "delete":
        raise sqlite3.DatabaseError("it has another kind of journal")
    if (found := _pragma(connection, "quick_check(1)")) != "ok":
        raise sqlite3.DatabaseError(found)


def _check_files(path: Path) -> None:
    """Refuse, by an UnsafeFileError, what SQLite would wait for, follow, or take orders from.

    A journal may name a further file, which SQLite deletes; none of ours does. Not to be called
    while this process has the database open, whose locks end when any handle of it is closed.
    """
    open_regular(path, follow_links=False).close()
    for ending in ("-journal", "-wal", "-shm"):
        beside = Path(f"{path}{ending}")
        with suppress(FileNotFoundError), open_regular(beside, follow_links=False) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(_NAMES_A_FILE)))
            if ending != "-journal" or file.read() == _NAMES_A_FILE:
                raise UnsafeFileError(errno.EINVAL, "is none of the tool's files", str(beside))


def _digests(parts: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def _seal(manifest: Mapping[str, Any]) -> str:
    """Covers the other parts by their digests."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return seal.digest(b"index", packed(content))


def _seal_row(kind: str, name: str, content: bytes) -> str:
    return seal.digest(b"kept", kind.encode(), name.encode(), content)


def _own_rows(connection: sqlite3.Connection, kind: str) -> dict[str, bytes]:
    """Rows may have been damaged or forged: one counts only if it has our seal."""
    columns = "CAST(name AS BLOB), CAST(content AS BLOB), CAST(seal AS BLOB)"
    own = {}
    for row in connection.execute(f"SELECT {columns} FROM kept WHERE kind = ?", (kind,)):
        if None not in row:
            name, content, found = row
            name = name.decode(errors="replace")
            if found == _seal_row(kind, name, content).encode():
                own[name] = content
    return own


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value has these keys, and these types at their places."""
    if isinstance(expected, dict):
        alike = isinstance(value, dict) and value.keys() == expected.keys()
        return alike and all(_fits(value[key], inner) for key, inner in expected.items())
    if expected is list:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    return type(value) is expected and (expected is not int or 0 <= value < 2**63)


@cache
def tool_version() -> str:
    """Release, and a digest of the code that decides what an index holds."""
    package = Path(__file__).resolve().parent.parent
    content = hashlib.sha256()
    names = "cleaning", "lexical", "search/indexing", "search/lexicon", "search/walking"
    sources = sorted((package / "extraction").rglob("*.py"))
    for source in (*sources, *(package / f"{name}.py" for name in names)):
        content.update(source.read_bytes())
    # The names of these folders tell versions; to read all packages' would take 0.1 s.
    grammars = {p.name for place in sys.path for p in Path(place).glob("tree_sitter*.dist-info")}
    content.update(" ".join(sorted(grammars)).encode())
    return f"{metadata.version('tenfold')}+{content.hexdigest()[:8]}"
