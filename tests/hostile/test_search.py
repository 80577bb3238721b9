"""The search tool in folders that a stranger filled: indexes, links, remains of runs, models."""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.cascode.search import cli, indexing, seal, store
from methods.cascode.search.index import Index
from methods.cascode.search.models import GAIN, Decision, Settings, decide
from methods.cascode.search.page import PageServer
from methods.cascode.search.query import Request, Searcher
from methods.cascode.search.store import DATABASE, FOLDER
from tests.hostile import tripwire
from tests.hostile.damages import DAMAGES
from tests.unit.cascode_search_toy import FILES, HashingModel, build, content, write_tree

PRECIOUS = b"nobody may change this\n"
MANY = "\n".join(f"def word{n}_number(a):\n    return a + {n}\n" for n in range(9))
FUNCTIONS = FILES | {"many.py": MANY}
DIFFERENT = 19
Change = Callable[[Any], Any]


class Place:
    """A folder of code, what lies outside of it, and commands on it that are watched."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.outside, self._capsys = tmp_path, capsys
        self.root = write_tree(tmp_path / "code", FUNCTIONS)
        self.home = self.root / FOLDER
        self.file = tmp_path / "precious"
        self.folder = tmp_path / "precious folder"
        self.folder.mkdir()
        for path in (self.file, self.folder / "file"):
            path.write_bytes(PRECIOUS)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and what was printed; a failure is one line on the error stream."""
        self._capsys.readouterr()
        with tripwire.watched(self.outside) as watch:
            status = cli.main(arguments)
        out, error = self._capsys.readouterr()
        assert watch.processes == []
        assert {*watch.outside} <= {"/dev/zero"}, "a link to that is not followed"
        assert (self.file.read_bytes(), (self.folder / "file").read_bytes()) == (PRECIOUS, PRECIOUS)
        assert os.listdir(self.folder) == ["file"]
        if status == 0:
            assert error == ""
            return status, out
        assert status == 2
        assert error.startswith("tenfold-search: ")
        assert error.count("\n") == 1
        return status, error

    def index(self, *options: str) -> tuple[int, str]:
        return self.run("index", str(self.root), *options)

    def query(self, *options: str) -> tuple[int, str]:
        return self.run("query", "connect to a server", "--dir", str(self.root), *options)

    def mark(self) -> None:
        """Make an empty index folder, as a stranger can."""
        self.home.mkdir()
        for name, mark in store._MARKS.items():
            (self.home / name).write_bytes(mark)

    @property
    def database(self) -> Path:
        return self.home / DATABASE

    def forge(self, change: Change = lambda manifest: None, **parts: Change) -> None:
        """Change a manifest, and parts that it then fits, as a stranger can."""
        with changing(self.database) as database:
            found = dict(database.execute("SELECT name, content FROM parts"))
            manifest = json.loads(found.pop("manifest")) | {"seal": "0"}
            for name, make in parts.items():
                found[name] = make(found.get(name, b""))
            found = {name: part for name, part in found.items() if part is not None}
            manifest["parts"] = {n: hashlib.sha256(p).hexdigest() for n, p in found.items()}
            change(manifest)
            database.execute("DELETE FROM parts")
            rows = {"manifest": store.packed(manifest)} | found
            database.executemany("INSERT INTO parts VALUES (?, ?)", rows.items())


@contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database, database:
        yield database


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)  # the interpreter tells of names in an open folder without it
    monkeypatch.setattr(cli, "load", lambda settings, light=False: HashingModel())
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path.resolve(), capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the index of another one, and with the key of its seal."""
    root = write_tree(tmp_path_factory.mktemp("finished").resolve() / "code", FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(root.parent / "state"))
        build(root)
    (root / FOLDER).rename(root.parent / FOLDER)
    return root.parent


@pytest.fixture
def made(place: Place, finished: Path) -> Place:
    """A place with a finished index of its own."""
    shutil.copytree(finished / "state", place.outside / "state")
    shutil.copytree(finished / FOLDER, place.home)
    assert Index(place.home).own
    return place


@pytest.fixture
def foreign(made: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same on another machine, with a model from a package."""
    monkeypatch.setenv("XDG_STATE_HOME", str(made.outside / "another state"))
    made.forge(at("description", "model", "source", value="package:theirs"))
    assert not Index(made.home).own
    return made


def at(*keys: str, value: Any) -> Change:
    """A change of one value of a manifest; `...` removes it."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value
        if value is ...:
            del manifest[keys[-1]]

    return change


# --- writing ---

PLANTS: dict[str, Callable[[Path, Place], object]] = {
    "a link to a file": lambda path, place: path.symlink_to(place.file),
    "a link to a folder": lambda path, place: path.symlink_to(place.folder),
    "a link to nothing": lambda path, place: path.symlink_to(place.folder / "new"),
    "an endless device": lambda path, place: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, place: os.mkfifo(path),
    "a folder": lambda path, place: path.mkdir(),
}
NAMES = [DATABASE, *(f"{DATABASE}-{ending}" for ending in ("journal", "wal", "shm"))]
NAMES += ["CACHEDIR.TAG", "lock"]


@pytest.mark.parametrize(("name", "plant"), [*product(NAMES, PLANTS)])
def test_what_lies_where_is_written(place, name, plant):
    """Whatever it is, nothing outside changes, and one line says what to remove."""
    place.mark()
    path = place.home / name
    path.unlink(missing_ok=True)
    PLANTS[plant](path, place)
    for status, said in (place.index(), place.query()):
        assert status == 2
        assert name in said or "no index in" in said or "other version" in said
    assert os.path.lexists(path)


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
def test_files_of_another_journal(made, ending):
    Path(f"{made.database}{ending}").write_bytes(b"")
    assert "is none of the tool's files" in made.query()[1]
    assert "is none of the tool's files: remove it" in made.index()[1]


def test_a_journal_that_names_a_file(made):
    """SQLite deletes the file that the end of a hot journal names."""
    before = content(made.home)
    victim = made.outside / "victim"
    journal = Path(f"{made.database}-journal")
    if (pid := os.fork()) == 0:
        database = sqlite3.connect(made.database)
        database.execute("PRAGMA cache_size = 1")
        database.execute("DELETE FROM parts")
        more = "INSERT INTO parts VALUES ('more', ?)"
        database.executemany(more, [(bytes(100_000),)] * 20)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    hot, half = journal.read_bytes(), made.database.read_bytes()
    name = os.fsencode(victim)
    end = [len(name).to_bytes(4, "big"), sum(name).to_bytes(4, "big"), store._NAMES_A_FILE]
    page = (2**30 // 16_384 + 1).to_bytes(4, "big")
    for opened in (made.query, made.index, lambda: (3, sqlite3.connect(made.database))):
        victim.write_bytes(PRECIOUS)
        journal.write_bytes(hot + page + name + b"".join(end))
        made.database.write_bytes(half)
        status, said = opened()
        if status == 3:  # without our look at the journal
            with closing(said) as database:
                database.execute("SELECT * FROM parts").fetchone()
            assert not victim.exists()
        else:
            assert "is none of the tool's files" in said
            assert victim.read_bytes() == PRECIOUS
    journal.write_bytes(hot)
    made.database.write_bytes(half)
    assert made.query()[0] == 0, "ours is played back"
    assert content(made.home) == before


def test_the_folder_of_an_index_is_a_link(made):
    elsewhere = made.home.rename(made.outside / "elsewhere")
    made.home.symlink_to(elsewhere)
    assert "is a link" in made.query()[1]
    for plant in ("a link to a file", "a link to a folder", "a link to nothing", ""):
        assert ".tenfold-search is a link: " in made.index()[1]
        assert made.query()[0] == 2
        if plant:
            made.home.unlink()
            PLANTS[plant](made.home, made)


def test_an_index_is_private(place):
    """A new one, and one that stood already; a folder of other things keeps its mode."""
    place.root.chmod(0o755)
    for _ in range(2):
        assert place.index()[0] == 0
        assert place.home.stat().st_mode & 0o777 == 0o700
        place.home.chmod(0o755)
    assert place.root.stat().st_mode & 0o777 == 0o755
    place.folder.chmod(0o755)
    assert "holds other things" in place.index("--index", str(place.folder))[1]
    assert place.folder.stat().st_mode & 0o777 == 0o755


# --- what an earlier run left ---


class Stopped(HashingModel):
    """A model that is stopped at its third batch."""

    def encode_codes(self, texts: Any, progress: Any = None) -> Any:
        if len(self.encoded) == 8:
            raise KeyboardInterrupt
        return super().encode_codes(texts, progress)


@pytest.fixture
def stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database of a run that was stopped after 8 texts."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    with pytest.raises(KeyboardInterrupt):
        build(place.root, Stopped())
    return place.database


def encoded(root: Path, model: HashingModel | None = None) -> int:
    """How many texts a run encodes."""
    model = model or HashingModel()
    build(root, model)
    return len(model.encoded)


def test_flipped_bits_give_no_other_index(place, stopped):
    whole = stopped.read_bytes()
    assert encoded(place.root) == DIFFERENT - 8, "what was done is taken over"
    undisturbed = content(place.home)
    used = [number for number, byte in enumerate(whole) if byte]
    draw = random.Random(0)
    for flips in [-1, 1, 1, 1, 1, 1, 1, 1, 1, 10, 100, 1000]:
        damaged = bytearray(whole)
        for _ in range(flips):
            damaged[draw.choice(used)] ^= 1 << draw.randrange(8)
        if flips == -1:
            damaged[18] = 3  # can be read, but not written
        stopped.write_bytes(damaged)
        build(place.root)
        assert content(place.home) == undisturbed


def test_rows_of_another_run_are_not_taken_over(place, stopped):
    assert encoded(place.root, HashingModel("2")) == DIFFERENT


def test_rows_are_not_exchanged(place, stopped):
    with changing(stopped) as database:
        database.execute(
            "UPDATE kept SET (content, seal) = (SELECT content, seal FROM kept "
            "WHERE kind GLOB 'vectors*' LIMIT 1) WHERE kind GLOB 'vectors*'"
        )
    assert encoded(place.root) == DIFFERENT - 1


@pytest.mark.parametrize("value", ["NULL", "5", "CAST(x'ff' AS TEXT)", "x'ff'"])
@pytest.mark.parametrize("of", ["name", "content", "seal"])
def test_rows_of_other_types(place, stopped, of, value):
    with changing(stopped) as database:
        of_vectors = "(SELECT max(rowid) FROM kept WHERE kind GLOB 'vectors*')"
        database.execute(f"UPDATE kept SET {of} = {value} WHERE rowid = {of_vectors}")
    assert encoded(place.root) == DIFFERENT - 7


def test_a_database_that_cannot_be_written(place, stopped, monkeypatch):
    """Neither the one that is there nor a new one."""

    def write(*arguments: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(store.Writer, "_begin", write)
    assert "readonly database" in place.index()[1]


def test_remains_of_another_machine(place, stopped, monkeypatch):
    """Its rows are not ours."""
    monkeypatch.setenv("XDG_STATE_HOME", str(place.outside / "another state"))
    assert encoded(place.root) == DIFFERENT


def test_the_key(place):
    assert place.index()[0] == 0
    key = place.outside / "state/tenfold/key"
    assert (key.stat().st_size, key.stat().st_mode & 0o777) == (seal.SIZE, 0o600)
    assert key.parent.stat().st_mode & 0o777 == 0o700


KEYS: dict[str, Callable[[Path, Place], object]] = PLANTS | {
    "too short": lambda path, place: (path.write_bytes(bytes(31)), path.chmod(0o600)),
    "too long": lambda path, place: (path.write_bytes(bytes(33)), path.chmod(0o600)),
    "readable by others": lambda path, place: (path.write_bytes(bytes(32)), path.chmod(0o640)),
    "a link to a key": lambda path, place: (
        seal._create(place.outside / "other/key"),
        path.symlink_to(place.outside / "other/key"),
    ),
    "in no folder": lambda path, place: (path.parent.rmdir(), path.parent.write_bytes(b"")),
}


@pytest.mark.parametrize("plant", KEYS)
def test_a_key_that_cannot_be_used(place, plant):
    """Then nothing that is there is trusted, and a run says so."""
    path = place.outside / "state/tenfold/key"
    path.parent.mkdir(parents=True)
    KEYS[plant](path, place)
    assert "note: no key is kept, so the next run takes nothing over: " in place.index()[1]
    seal._key.cache_clear()  # as in another process
    assert not Index(place.home).own


# --- a database ---


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database(made, damage):
    DAMAGES[damage](made.database)
    assert made.query()[0] == 2
    whole = damage in ("missing", "empty") or made.database.is_file()
    assert made.index()[0] == (0 if whole and not made.database.is_symlink() else 2)


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x, x FROM n"
SCHEMAS = {
    "no tables": "DROP TABLE parts; DROP TABLE kept",
    "one table less": "DROP TABLE kept",
    "one table more": "CREATE TABLE more (x)",
    "an index more": "CREATE INDEX more ON parts (name)",
    "other columns": "ALTER TABLE parts ADD COLUMN more",
    "a view without end": f"DROP TABLE parts; CREATE VIEW parts (name, content) AS {ENDLESS}",
    "a trigger without end": "CREATE TRIGGER more BEFORE DELETE ON kept BEGIN "
    f"INSERT INTO parts {ENDLESS}; END",
    "a column that is computed": "DROP TABLE kept; CREATE TABLE kept (kind, name, content, seal "
    "AS (zeroblob(1000000000)))",
    "no manifest": "DELETE FROM parts",
    "a manifest that is a number": "UPDATE parts SET content = 5 WHERE rowid = 1",
    "a part that is a text": "UPDATE parts SET content = 'vectors' WHERE name = 'vectors'",
    "a part that is nothing": "UPDATE parts SET content = NULL WHERE name = 'vectors'",
    "a name that is a number": "UPDATE parts SET name = 5 WHERE name = 'vectors'",
    "a name that is no text": "UPDATE parts SET name = CAST(x'ff' AS TEXT) WHERE rowid = 3",
    "a part twice": "INSERT INTO parts SELECT * FROM parts WHERE rowid > 1",
    "another format": "PRAGMA user_version = 99",
    "no format": "PRAGMA user_version = 0",
    "another journal": "PRAGMA journal_mode = WAL",
}


@pytest.mark.parametrize("attack", SCHEMAS)
def test_databases_that_do_not_fit(foreign, attack):
    with closing(sqlite3.connect(foreign.database)) as database:
        database.executescript(SCHEMAS[attack])
    status, said = foreign.query()
    assert status == 2 or attack == "no format", said
    assert foreign.index()[0] == 0
    assert Index(foreign.home).own
    content(foreign.home)


def test_a_tree_with_a_circle(foreign):
    """A page that is its own child: reading it row by row would not end."""
    with changing(foreign.database) as database:
        rows = [("more", bytes(3_000))] * 60
        database.executemany("INSERT INTO parts VALUES (?, ?)", rows)
        root = "SELECT rootpage FROM sqlite_schema WHERE name = 'parts'"
        (page,) = database.execute(root).fetchone()
    whole = bytearray(foreign.database.read_bytes())
    start = (page - 1) * store._PAGE
    assert whole[start] == 5, "an inner page"
    whole[start + 8 : start + 12] = page.to_bytes(4, "big")
    foreign.database.write_bytes(whole)
    assert "is damaged" in foreign.query()[1]
    assert foreign.index()[0] == 0


def column(number: int, change: Change) -> dict[str, Change]:
    """A change of one column of the functions."""

    def make(part: bytes) -> bytes:
        columns = json.loads(part)
        columns[number] = change(columns[number])
        return json.dumps(columns).encode()

    return {"functions": make}


def first(value: Any) -> Change:
    return lambda found: [value, *found[1:]]


def json_of(name: str, value: Any) -> dict[str, Change]:
    return {name: lambda part: json.dumps(value).encode()}


def array(name: str, kind: type, change: Change) -> dict[str, Change]:
    return {name: lambda part: change(np.frombuffer(part, kind).copy()).tobytes()}


def put(value: Any) -> Change:
    def change(found: Any) -> Any:
        found[0] = value
        return found

    return change


CONTENTS: dict[str, dict[str, Change]] = {
    "no functions": {"functions": lambda part: None},
    "functions that are no JSON": {"functions": lambda part: b"[" * 100_000},
    "functions that are none": json_of("functions", {"a": 1}),
    "a column less": json_of("functions", [[], [], [], []]),
    "a column that is none": column(1, lambda found: {"a": 1}),
    "a name less": column(1, lambda found: found[1:]),
    "a name that is none": column(1, first(3)),
    "a file that is none": column(0, first(["a.py", "python"])),
    "a path that is none": column(0, first([3, "python", "0", 2])),
    "a file more": column(0, lambda found: [*found, found[0]]),
    "an unknown language": column(0, first(["a.py", "cobol", "0", 2])),
    "functions below 0": column(0, lambda f: [[*f[0][:3], -1], [*f[1][:3], 3], *f[2:]]),
    "functions without end": column(0, first(["a.py", "python", "0", 10**30])),
    "a kind that is none": column(2, first(5)),
    "a kind below 0": column(2, first(-1)),
    "a line 0": column(3, first(0)),
    "an end before the start": column(4, first(0)),
    "a fraction": column(3, first(1.5)),
    "a truth": column(3, first(True)),
    "nothing for a number": column(3, first(None)),
    "a list for a number": column(3, first([1])),
    "a text that is none": column(5, first(10**6)),
    "a text of an enormous number": column(5, first(10**30)),
    "a text below 0": column(5, first(-1)),
    "a text of nobody": column(5, lambda found: [0] * len(found)),
    "no texts": {"texts": lambda part: b""},
    "a text less": {"texts": lambda part: part.partition(b"\xff")[2]},
    "vectors and more": {"vectors": lambda part: part + b"more"},
    "too few vectors": array("vectors", np.float16, lambda found: found[48:]),
    "a vector that is none": array("vectors", np.float16, put(np.nan)),
    "an infinite vector": array("vectors", np.float16, put(np.inf)),
    "no counts": {"counts": lambda part: b""},
    "a count of 0": array("counts", np.uint16, put(0)),
    "counts without postings": {"postings": lambda part: None},
    "counts of no text": array("postings", np.int32, put(10**6)),
    "counts of a text below 0": array("postings", np.int32, put(-1)),
    "too few counts": array("counts", np.uint16, lambda found: found[1:]),
    "a word that is no number": json_of("terms", {"connect": "1"}),
    "a word below 0": json_of("terms", {"connect": -1}),
    "words beyond": json_of("terms", {"connect": 10**30}),
    "words that are a list": json_of("terms", ["connect"]),
    "one part more": {"more": lambda part: b"more"},
}


@pytest.mark.parametrize("attack", CONTENTS)
def test_content_that_does_not_fit(foreign, attack):
    foreign.forge(**CONTENTS[attack])
    status, said = foreign.query()
    assert status == 2
    assert "is damaged" in said


def test_vectors_of_another_model(foreign):
    less = array("vectors", np.float16, lambda found: found[: len(found) // 48 * 47])
    foreign.forge(at("description", "model", "dimension", value=47), **less)
    assert "its vectors are not of that model" in foreign.query()[1]


@pytest.mark.parametrize(
    "path",
    [
        *("../precious", "net/../../precious", "/etc/hostname", "a\0b.py", "\ud800.py"),
        *("x" * 5000, "", "net"),
    ],
)
def test_paths_of_an_index(foreign, path):
    """Nothing but files below the folder is shown."""
    foreign.forge(**column(0, lambda found: [[path, "python", "0", n] for *_, n in found]))
    status, said = foreign.query()
    assert status == 0
    assert "    this file is " in said
    assert PRECIOUS.decode().strip() not in said


MANIFESTS: dict[str, Change] = {
    "no description": at("description", value=...),
    "a description that is none": at("description", value="tool"),
    "no root": at("description", "root", value=...),
    "a root that is none": at("description", "root", value=3),
    "a root elsewhere": at("description", "root", value="/etc"),
    "a root above": at("description", "root", value="../.."),
    "one fact more": at("description", "more", value=1),
    "a tool that is none": at("description", "tool", value={}),
    "no scope": at("description", "scope", value=...),
    "a scope that is none": at("description", "scope", value=["a"]),
    "folders that are none": at("description", "scope", "folders", value=[3]),
    "patterns that are none": at("description", "scope", "exclude", value="*"),
    "a limit below 0": at("description", "limit", value=-1),
    "an enormous limit": at("description", "limit", value=10**30),
    "a model that is none": at("description", "model", value=[]),
    "no fingerprint": at("description", "model", "fingerprint", value=...),
    "an unknown precision": at("description", "model", "precision", value="save"),
    "an unknown pooling": at("description", "model", "pooling", value="all"),
    "a dimension that is none": at("description", "model", "dimension", value="48"),
    "another dimension": at("description", "model", "dimension", value=47),
    "an enormous dimension": at("description", "model", "dimension", value=2**62),
    "no parts": at("parts", value=...),
    "parts that are none": at("parts", value=["vectors"]),
    "a part without a digest": at("parts", "vectors", value=...),
    "a digest that is none": at("parts", "vectors", value=3),
    "no seal": at("seal", value=...),
    "a seal that is none": at("seal", value=["a"]),
    "one value more": at("more", value=1),
    "a deep value": at("description", "root", value=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_manifests_that_do_not_fit(foreign, attack):
    foreign.forge(MANIFESTS[attack])
    assert foreign.query()[0] == 2
    assert foreign.index()[0] == 0


def test_manifests_that_are_none(foreign):
    for text in ("", "[]", "3", "[" * 100_000, '{"seal":' * 990 + "0" + "}" * 990):
        with changing(foreign.database) as database:
            database.execute("UPDATE parts SET content = ? WHERE rowid = 1", (text.encode(),))
        assert "is damaged" in foreign.query()[1], text[:20]


# --- a whole index of another machine ---


def test_a_foreign_index_is_built_anew(foreign, monkeypatch):
    model = HashingModel()
    monkeypatch.setattr(cli, "load", lambda settings, light=False: model)
    status, said = foreign.index()
    assert status == 0
    assert "note: built anew, as the old index cannot be used: it was not made on this mach" in said
    assert len(model.encoded) == DIFFERENT
    assert Index(foreign.home).own
    assert "nothing had changed" in foreign.index()[1]


@pytest.mark.parametrize("forged", [None, "0" * 32, ""])
def test_a_changed_index_is_foreign(made, forged):
    found = forged if forged is not None else Index(made.home).manifest["seal"]
    made.forge(lambda m: m.update(seal=found, description=m["description"] | {"limit": 5}))
    assert not Index(made.home).own


def test_the_model_of_a_foreign_index(made, monkeypatch):
    """A stranger may not choose which file is loaded; packages are installed by their user."""
    asked: list[str] = []

    def load(settings: Settings, light: bool = False) -> HashingModel:
        asked.append(settings.source)
        return HashingModel()

    monkeypatch.setattr(cli, "load", load)
    assert made.query()[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(made.outside / "another state"))
    assert "give --model SOURCE" in made.query()[1]
    assert made.query("--model", "package:mine")[0] == 0
    made.forge(at("description", "model", "source", value="package:theirs"))
    assert made.query()[0] == 0
    assert asked == ["hashing", "package:mine", "package:theirs"]


def test_the_code_of_a_foreign_index(made, monkeypatch):
    """It lies around the index; one's own may lie elsewhere."""
    elsewhere = str(made.outside / "elsewhere")
    assert made.index("--index", elsewhere)[0] == 0
    assert "def open_connection" in made.query("--index", elsewhere)[1]
    monkeypatch.setenv("XDG_STATE_HOME", str(made.outside / "another state"))
    assert "not of the folder that it lies in" in made.query("--index", elsewhere)[1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gain(tmp_path, damage):
    (tmp_path / GAIN).write_text('{"gain": 2.5, "interval": [0.5, 4.5], "data": "5 packages"}\n')
    assert decide("measured", HashingModel(), str(tmp_path)).rerank
    DAMAGES[damage](tmp_path / GAIN)
    with tripwire.watched(tmp_path):
        found = decide("measured", HashingModel(), str(tmp_path))
    assert not found.rerank or damage == "flipped bits"
    assert found.reason.startswith("first stage only: ") or found.rerank


@pytest.mark.parametrize(
    ("gain", "data"), [("1" + "0" * 400, '""'), ('"x"', '""'), ("1e999", '""'), ("1", "[1]")]
)
def test_a_gain_that_is_none(tmp_path, gain, data):
    text = f'{{"gain": {gain}, "interval": [0.5, 4.5], "data": {data}}}'
    (tmp_path / GAIN).write_text(text)
    assert "is not readable" in decide("measured", HashingModel(), str(tmp_path)).reason


def test_a_gain_that_would_write_to_a_terminal(made, monkeypatch):
    monkeypatch.setattr(cli, "decide", lambda *_: Decision(True, "\x1b[2J not measured"))
    assert "\\x1b[2J not measured" in made.query()[1]


# --- rules of a folder ---


RULES: dict[str, Callable[[Path, Place], object]] = {
    "stars": lambda path, place: path.write_text(f"{'*a' * 120}b\n" * 2_000),
    "nested ranges": lambda path, place: path.write_text("[" * 50_000 + "\n" + "[a-" * 9_000),
    "a long line": lambda path, place: path.write_text("?" * 150_000),
    "a large file": lambda path, place: path.write_bytes(b"*\n" * 5_000_000),
    "bytes": lambda path, place: path.write_bytes(bytes(range(256)) * 100),
    **{name: plant for name, plant in PLANTS.items() if name != "a folder"},
}


@pytest.mark.parametrize("plant", RULES)
def test_rules_that_are_made_to_disturb(place, plant):
    """They are passed over, soon; nothing outside is read."""
    RULES[plant](place.root / ".gitignore", place)
    (place.root / f"{'a' * 250}.py").write_text("def long():\n    return 1\n")
    start = time.process_time()
    status, said = place.index()
    assert time.process_time() - start < 20
    assert status == 0, said
    assert "nothing had changed" in place.index()[1]


def test_stamps_that_a_stranger_wrote(made):
    """No file passes for unchanged because an index says so."""
    with changing(made.database) as database:
        row = "stamps", "stamps", b'{"config.py": ["", "binary"]}', "0" * 32
        database.execute("DELETE FROM kept")
        database.execute("INSERT INTO kept VALUES (?, ?, ?, ?)", row)
    assert Index(made.home).stamps == {}
    status, said = made.index()
    assert status == 0
    assert "binary" not in said


# --- names and numbers ---


def found_in(place: Place) -> Searcher:
    return Searcher(Index(place.home), HashingModel(), Decision(False, "never"))


def test_names_that_are_no_text(place):
    """Of the folder, in it, and one with control characters."""
    place.root = place.root.rename(place.outside / os.fsdecode(b"caf\xe9"))
    place.home = place.root / FOLDER
    (place.root / os.fsdecode(b"\xff")).mkdir()
    for name in (os.fsdecode(b"\xff/caf\xe9.py"), "\x1b[2J\n.py"):
        (place.root / name).write_text("def unusual():\n    return 1\n")
    (place.root / os.fsdecode(b"\xe9.py")).symlink_to("config.py")
    assert "\\udce9.py" in place.index()[1]
    assert "nothing had changed" in place.index()[1]
    for options in ([], ["--json"], ["--path", os.fsdecode(b"\xff")]):
        status, said = place.run("query", "unusual", "--dir", str(place.root), *options)
        assert status == 0
        assert "caf\\udce9.py" in said
        assert "\x1b" not in said
    with PageServer(lambda: found_in(place), Request(""), port=0) as server:
        status, page = server.page({"q": "unusual", "path": "\udcff"})
    assert status == 200
    assert b"caf\\udce9.py" in page


@pytest.mark.parametrize(
    "top", ["00100000", "101", "0", "9" * 5000, "0" * 5000 + "1", "1e1", " 5", "\u00b2"]
)
def test_numbers_of_the_page(made, top):
    with PageServer(lambda: found_in(made), Request(""), port=0) as server:
        status, page = server.page({"q": "server", "top": top})
        assert status == 400
        assert b"from 1 to 100" in page
        assert server.page({"q": "server", "top": "100"})[0] == 200


@pytest.mark.parametrize(
    "arguments",
    [
        *(["serve", "--port", port] for port in ("65536", "99999", "-1", "9" * 5000)),
        *(["query", "x", option, "10001"] for option in ("--top", "--k", "--lines")),
        *(["query", "x", option, "9" * 5000] for option in ("--top", "--k", "--lines")),
        ["index", ".", "--max-bytes", "9" * 18],
    ],
)
def test_numbers_of_a_command(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "is no whole number from" in last_line
    assert len(last_line) < 200


@pytest.mark.parametrize(
    "options",
    [
        ["query", "x", "--dir", "x" * 5000],
        ["query", "x", "--index", "x" * 5000],
        ["query", "x", "--dir", "/proc/self/mem"],
        ["query", "x", "--dir", "../loop"],
        ["query", "x", "--dir", "."],
        ["index", "x" * 5000],
        ["index", "../loop"],
        ["index", ".", "--index", "../loop"],
        ["index", ".", "--index", "/dev/null"],
        ["index", ".", "--model", "~nobody-of-that-name/x", "--index", "/dev/null/x"],
    ],
)
def test_places_that_are_none(place, options, monkeypatch):
    (place.outside / "loop").symlink_to("loop")
    monkeypatch.chdir(place.root)
    assert place.run(*options)[0] == 2


def test_a_working_folder_that_is_gone(place, monkeypatch):
    gone = place.outside / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert place.run("query", "x")[0] == 2


def test_no_memory(place, monkeypatch):
    def load(settings: Settings, light: bool = False) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "load", load)
    assert place.index()[1] == "tenfold-search: out of memory\n"


def test_a_large_limit_takes_no_memory(place):
    assert place.index("--max-bytes", str(10**12))[0] == 0
