"""The search tool in folders that a stranger filled: indexes, links, remains of runs, models."""

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.cascode.search import cli, indexing, seal, store, vectors, words
from methods.cascode.search.indexing import Options, build_index
from methods.cascode.search.models import DEFAULT, GAIN, Decision, Settings, decide
from methods.cascode.search.page import PageServer
from methods.cascode.search.query import Request, Searcher
from methods.cascode.search.store import FOLDER, MANIFEST, DamagedIndexError, Index
from methods.cascode.search.unfinished import Unfinished
from tests.hostile import tripwire
from tests.hostile.damages import DAMAGES, TOLERATED
from tests.unit.cascode_search_toy import FILES, HashingModel, build, content, write_tree

PRECIOUS = b"nobody may change this\n"
MANY = "\n".join(f"def word{n}_number(a):\n    return a + {n}\n" for n in range(9))
FUNCTIONS = FILES | {"many.py": MANY}
DIFFERENT = 12
FILES_OF_AN_INDEX = (
    *("functions.json", "texts.bin", "texts.npy", "vectors.npy", "graph.faiss"),
    *sorted(words.FILES),
)


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
        assert {*watch.outside} <= {"/dev/zero"}, "a link to that may be removed"
        assert (self.file.read_bytes(), (self.folder / "file").read_bytes()) == (PRECIOUS, PRECIOUS)
        assert os.listdir(self.folder) == ["file"]
        if status == 0:
            assert error == ""
            return status, out
        assert status == 1
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

    def manifest(self) -> dict[str, Any]:
        """What the index was made of, without the seal."""
        manifest = json.loads((self.home / MANIFEST).read_bytes())
        del manifest["seal"]
        return manifest

    @property
    def content(self) -> Path:
        """The folder of the index's files."""
        return self.home / self.manifest()["folder"]

    def forge(self, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
        """Write a manifest that fits the files as they are, as a stranger can."""
        manifest = self.manifest()
        folder = self.home / manifest.pop("folder")
        manifest["files"] = {path.name: store._measure(path) for path in sorted(folder.iterdir())}
        change(manifest)
        name = hashlib.sha256(store._dumps(manifest)).hexdigest()[:16]
        folder.rename(self.home / name)
        (self.home / MANIFEST).write_bytes(store._dumps(manifest | {"folder": name, "seal": "0"}))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)  # the interpreter tells of names in an open folder without it
    monkeypatch.setattr(cli, "load", lambda settings: HashingModel())
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path.resolve(), capsys)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manifest of an undisturbed run, without the seal."""
    root = write_tree(tmp_path_factory.mktemp("expected").resolve(), FUNCTIONS)
    build_index(Options(root, root / FOLDER), HashingModel(), Settings(), lambda *_: None)
    manifest = json.loads((root / FOLDER / MANIFEST).read_bytes())
    del manifest["seal"]
    return manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the index of another one, which has a graph, and with the key of its seal."""
    root = write_tree(tmp_path_factory.mktemp("finished").resolve() / "code", FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "SMALLEST", {})
        patch.setenv("XDG_STATE_HOME", str(root.parent / "state"))
        build(root, kind="hnsw")
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


def at(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


# --- writing ---

PLANTS: dict[str, Callable[[Path, Place], object]] = {
    "a link to a file": lambda path, place: path.symlink_to(place.file),
    "a link to a folder": lambda path, place: path.symlink_to(place.folder),
    "a link to nothing": lambda path, place: path.symlink_to(place.folder / "new"),
    "a link to itself": lambda path, place: path.symlink_to(path.name),
    "an endless device": lambda path, place: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, place: os.mkfifo(path),
    "a folder": lambda path, place: path.mkdir(),
}
NAMES = {
    "index.json": "built",
    "index.tmp": "built",
    ".index.json.0123abcd.tmp": "built",
    "new": "built",
    "unfinished-float32-0123.db": "built",
    "unfinished-float32-0123.db-journal": "built",
    "OURS": "built",
    "OURS-journal": "built",
    "OURS-wal": "built",
    "DIGEST": "built",
    "DIGEST/functions.json": "built",
    ".gitignore": "built",
    "CACHEDIR.TAG": "refused",
    "lock": "refused",
}
EXCEPTIONS = {("index.json", "a folder"): "refused"}
STAY = {("index.tmp", plant) for plant in PLANTS} | {
    (".index.json.0123abcd.tmp", plant) for plant in ("a pipe", "a folder")
}  # of no use and no harm


@pytest.mark.parametrize(("name", "plant"), [*product(NAMES, PLANTS)])
def test_what_lies_where_is_written(
    place: Place, expected: dict[str, Any], name: str, plant: str
) -> None:
    """Whatever it is, nothing outside changes; what is no file of ours is replaced or refused."""
    place.mark()
    ours = store.unfinished_path(place.home, "float32").name
    path = place.home / name.replace("OURS", ours).replace("DIGEST", expected["folder"])
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    PLANTS[plant](path, place)
    status, said = place.index()
    if EXCEPTIONS.get((name, plant), NAMES[name]) == "refused":
        assert status == 1
        return
    assert status == 0, said
    assert place.manifest() == expected
    assert Index(place.home).own
    left = {MANIFEST, "lock", *store._MARKS, expected["folder"]}
    left |= {name} if (name, plant) in STAY else set()
    assert {path.name for path in place.home.iterdir()} == left


@pytest.mark.parametrize("plant", ["a link to a file", "a link to a folder", "a link to nothing"])
def test_the_folder_of_an_index_is_a_link(place: Place, plant: str) -> None:
    PLANTS[plant](place.home, place)
    assert ".tenfold-search is a link: " in place.index()[1]
    assert place.query()[0] == 1


def test_the_folder_of_an_index_is_a_link_to_another_one(made: Place) -> None:
    elsewhere = made.home.rename(made.outside / "elsewhere")
    made.home.symlink_to(elsewhere)
    before = content(elsewhere)
    assert "is a link" in made.index()[1]
    assert "is a link" in made.query()[1]
    assert content(elsewhere) == before


def test_an_index_is_private(place: Place) -> None:
    """A new one, and one that stood already."""
    place.root.chmod(0o755)
    for _ in range(2):
        assert place.index()[0] == 0
        assert place.home.stat().st_mode & 0o777 == 0o700
        place.home.chmod(0o755)
    assert place.root.stat().st_mode & 0o777 == 0o755


def test_a_folder_of_other_things_keeps_its_mode(place: Place) -> None:
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
    return store.unfinished_path(place.home, "float32")


def encoded(root: Path, model: HashingModel | None = None) -> int:
    """How many texts a run encodes."""
    model = model or HashingModel()
    build(root, model)
    return len(model.encoded)


def test_flipped_bits_give_no_other_index(place: Place, stopped: Path) -> None:
    whole = stopped.read_bytes()
    assert encoded(place.root) == DIFFERENT - 8, "what was done is taken over"
    undisturbed = content(place.home)
    used = [number for number, byte in enumerate(whole) if byte]
    draw = random.Random(0)
    for flips in [-1] + [1] * 40 + [10, 100, 1000]:
        damaged = bytearray(whole)
        for _ in range(flips):
            damaged[draw.choice(used)] ^= 1 << draw.randrange(8)
        if flips == -1:
            damaged[18] = 3  # can be read, but not written
        (place.home / MANIFEST).unlink()
        stopped.write_bytes(damaged)
        build(place.root)
        assert content(place.home) == undisturbed


def test_rows_of_another_run_are_not_taken_over(place: Place, stopped: Path) -> None:
    assert encoded(place.root, HashingModel("2")) == DIFFERENT


def test_rows_are_not_exchanged(place: Place, stopped: Path) -> None:
    with sqlite3.connect(stopped) as database:
        of_first = "(SELECT {0} FROM vectors LIMIT 1)"
        database.execute(
            f"UPDATE vectors SET content = {of_first.format('content')}, "
            f"seal = {of_first.format('seal')}"
        )
    assert encoded(place.root) == DIFFERENT - 1


@pytest.mark.parametrize("value", ["NULL", "5", "'text'", "CAST(x'ff' AS TEXT)", "x'ff'"])
@pytest.mark.parametrize("of", ["name", "content", "seal"])
def test_rows_of_other_types(place: Place, stopped: Path, of: str, value: str) -> None:
    with sqlite3.connect(stopped) as database:
        database.execute(f"UPDATE vectors SET {of} = {value} WHERE rowid = 3")
    assert encoded(place.root) == DIFFERENT - 7


def test_a_database_that_cannot_be_written(
    place: Place, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the one that is there nor a new one."""

    def write(*arguments: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Unfinished, "_write", write)
    (place.root / "many.py").write_text("def new():\n    return 1\n")
    assert "readonly database" in place.index()[1]


def test_remains_of_another_machine(
    place: Place, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its name nor its rows are ours."""
    assert store.precision_of(place.home, "any") == "float32"
    monkeypatch.setenv("XDG_STATE_HOME", str(place.outside / "another state"))
    assert store.precision_of(place.home, "any") is None
    ours = store.unfinished_path(place.home, "float32")
    assert ours.name != stopped.name
    shutil.copy(stopped, ours)
    assert encoded(place.root) == DIFFERENT
    assert not stopped.exists()


def test_remains_of_another_folder(place: Place, stopped: Path) -> None:
    moved = place.root.rename(place.outside / "moved")
    assert encoded(moved) == DIFFERENT


# --- the key ---


def test_the_key(place: Place) -> None:
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
def test_a_key_that_cannot_be_used(place: Place, plant: str) -> None:
    """Then nothing that is there is trusted, and a run says so."""
    path = place.outside / "state/tenfold/key"
    path.parent.mkdir(parents=True)
    KEYS[plant](path, place)
    assert "note: no key is kept, so the next run takes nothing over: " in place.index()[1]
    seal._key.cache_clear()  # as in another process
    assert not Index(place.home).own


# --- files of a finished index ---


@pytest.mark.parametrize(("name", "damage"), [*product((MANIFEST, *FILES_OF_AN_INDEX), DAMAGES)])
def test_damaged_files(made: Place, name: str, damage: str) -> None:
    DAMAGES[damage]((made.home if name == MANIFEST else made.content) / name)
    assert made.query()[0] == 1


@pytest.mark.parametrize(("name", "damage"), [*product(FILES_OF_AN_INDEX, TOLERATED)])
def test_files_that_a_stranger_wrote(foreign: Place, name: str, damage: str) -> None:
    """Sizes and digests fit, and the content is anything."""
    DAMAGES[damage](foreign.content / name)
    foreign.forge()
    foreign.query("--rerank", "always")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def column(key: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """A change of one column of functions.json."""

    def plant(folder: Path) -> None:
        columns = json.loads((folder / "functions.json").read_bytes())
        write(folder / "functions.json", columns | {key: change(columns.get(key))})

    return plant


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [value, *found[1:]]


def last(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [*found[:-1], value]


def array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A change of one array."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def put(place: Any, value: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        found[place] = value
        return found

    return change


def header(name: str, shape: str) -> Callable[[Path], None]:
    """An array that claims another shape than it has."""

    def plant(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        start, end = whole.index(b"("), whole.index(b")") + 1
        head = (whole[:start] + shape.encode() + whole[end:127]).rstrip(b" \n").ljust(127)
        (folder / name).write_bytes(head[:127] + b"\n" + whole[128:])

    return plant


CONTENTS: dict[str, Callable[[Path], None]] = {
    "a column less": column("names", lambda found: found[1:]),
    "no column": column("starts", lambda found: None),
    "a column that is none": column("names", lambda found: {"a": 1}),
    "a column more": column("more", lambda found: []),
    "names that are none": column("names", first(3)),
    "files that are none": column("files", first(["a.py", "python"])),
    "paths that are none": column("files", first([3, "python", "0"])),
    "a file more": column("files", lambda found: [*found, found[0]]),
    "an unknown language": column("files", first(["a.py", "cobol", "0"])),
    "a line 0": column("starts", first(0)),
    "a line below 0": column("starts", first(-5)),
    "an end before the start": column("ends", first(0)),
    "a fraction": column("starts", first(1.5)),
    "a text for a number": column("starts", first("1")),
    "nothing for a number": column("starts", first(None)),
    "a list for a number": column("starts", first([1])),
    "lists for numbers": column("starts", lambda found: [[number] for number in found]),
    "an enormous number": column("ends", first(10**30)),
    "a file that is none": column("place_files", last(10**6)),
    "a file below 0": column("place_files", first(-1)),
    "files in disorder": column("place_files", lambda found: found[::-1]),
    "files that wrap around": column(
        "place_files", lambda found: [0, 2**62, -(2**63) + 1, -(2**61), *found[4:]]
    ),
    "a text that is none": column("rows", last(10**6)),
    "a text of an enormous number": column("rows", last(2**45)),
    "a text below 0": column("rows", first(-1)),
    "a text of nobody": column("rows", lambda found: [0] * len(found)),
    "no rows": column("rows", lambda found: []),
    "ends of texts beyond": array("texts.npy", put(-1, 10**9)),
    "ends of texts below 0": array("texts.npy", put(0, -5)),
    "ends of texts in disorder": array("texts.npy", put(0, 10**9)),
    "ends of texts in a table": array("texts.npy", lambda found: found.reshape(-1, 1)),
    "too few texts": array("texts.npy", lambda found: found[1:]),
    "ends that are no integers": array("texts.npy", lambda found: found.astype(float)),
    "vectors and more": lambda folder: append(folder / "vectors.npy"),
    "vectors in one row": array("vectors.npy", lambda found: found.reshape(-1)),
    "too few vectors": array("vectors.npy", lambda found: found[1:]),
    "vectors of another size": array("vectors.npy", lambda found: found[:, 1:].copy()),
    "vectors of another type": array("vectors.npy", lambda found: found.astype(np.float64)),
    "vectors by columns": array("vectors.npy", np.asfortranarray),
    "vectors that are objects": array("vectors.npy", lambda found: found.astype(object)),
    "a vector that is none": array("vectors.npy", put((0, 0), np.nan)),
    "an infinite vector": array("vectors.npy", put((0, 0), np.inf)),
    "vectors of an enormous shape": header("vectors.npy", "(99999999999, 48)"),
    "vectors of a shape that wraps": header("vectors.npy", "(4611686018427387904, 48)"),
    "ends of an enormous shape": header("texts.npy", "(999999999999,)"),
    "a shape that is a program": header("texts.npy", "(" * 30 + "1" + ")" * 30),
    "scores that are none": array(words.SCORES, put(0, np.nan)),
    "scores of an enormous shape": header(words.SCORES, "(999999999999,)"),
    "scores of no text": array(words.ROWS, put(0, 10**6)),
    "scores of a text below 0": array(words.ROWS, put(0, -1)),
    "too few scores": array(words.SCORES, lambda found: found[1:]),
    "words in disorder": array(words.STARTS, put(1, 10**6)),
    "words below 0": array(words.STARTS, put(0, -1)),
    "too few words": array(words.STARTS, lambda found: found[:2]),
    "a word that is no number": lambda folder: write(folder / words.TERMS, {"connect": "1"}),
    "a word that is a list": lambda folder: write(folder / words.TERMS, {"connect": [1]}),
    "a word below 0": lambda folder: write(folder / words.TERMS, {"connect": -1}),
    "a word beyond": lambda folder: write(folder / words.TERMS, {"connect": 10**6}),
    "words that are a list": lambda folder: write(folder / words.TERMS, ["connect"]),
}


@pytest.mark.parametrize("attack", CONTENTS)
def test_content_that_does_not_fit(foreign: Place, attack: str) -> None:
    CONTENTS[attack](foreign.content)
    foreign.forge()
    status, said = foreign.query()
    assert status == 1
    assert "is damaged" in said


def test_vectors_of_another_model(foreign: Place) -> None:
    array("vectors.npy", lambda found: found[:, 1:].copy())(foreign.content)
    foreign.forge(at("description", "model", "dimension", value=47))
    assert "its vectors are not of that model" in foreign.query()[1]


@pytest.mark.parametrize("name", ["words.settings.json", "graph.faiss"])
def test_files_that_a_query_has_no_use_for(foreign: Place, name: str) -> None:
    (foreign.content / name).write_bytes(b"anything")
    foreign.forge()
    assert foreign.query()[0] == 0


@pytest.mark.parametrize(
    "path", ["../precious", "/etc/hostname", "a\0b.py", "\ud800.py", "x" * 5000, "", "net"]
)
def test_paths_of_an_index(foreign: Place, path: str) -> None:
    """Nothing but files below the folder is shown."""
    column("files", lambda found: [[path, "python", "0"] for _ in found])(foreign.content)
    foreign.forge()
    status, said = foreign.query()
    assert status == 0
    assert "    this file is " in said
    assert PRECIOUS.decode().strip() not in said


MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no format": without("format"),
    "a format that is none": at("format", value=[]),
    "no description": without("description"),
    "a description that is none": at("description", value="tool"),
    "no root": without("description", "root"),
    "a root that is none": at("description", "root", value=3),
    "a root elsewhere": at("description", "root", value="/etc"),
    "a root above": at("description", "root", value="../.."),
    "one fact more": at("description", "more", value=1),
    "no tool": without("description", "tool"),
    "a tool that is none": at("description", "tool", value={}),
    "an unknown kind": at("description", "kind", value="tree"),
    "a kind that is none": at("description", "kind", value=[]),
    "a kind without a graph": at("description", "kind", value="flat"),
    "a limit below 0": at("description", "limit", value=-1),
    "an enormous limit": at("description", "limit", value=10**30),
    "no model": without("description", "model"),
    "a model that is none": at("description", "model", value=[]),
    "no fingerprint": without("description", "model", "fingerprint"),
    "an unknown precision": at("description", "model", "precision", value="save"),
    "an unknown pooling": at("description", "model", "pooling", value="all"),
    "a dimension that is none": at("description", "model", "dimension", value="48"),
    "another dimension": at("description", "model", "dimension", value=47),
    "no counts": without("counts"),
    "counts that are none": at("counts", value=[1, 2, 3]),
    "a count that is none": at("counts", "files", value="many"),
    "a count that is a truth": at("counts", "files", value=True),
    "another count": at("counts", "functions", value=3),
    "an enormous count": at("counts", "texts", value=10**15),
    "no files": without("files"),
    "files that are none": at("files", value=["vectors.npy"]),
    "a file without measures": at("files", "vectors.npy", value={}),
    "a file without a digest": without("files", "vectors.npy", "sha256"),
    "a size that is none": at("files", "vectors.npy", "bytes", value="many"),
    "no vectors": without("files", "vectors.npy"),
    "words without their scores": without("files", words.SCORES),
    "a file elsewhere": at("files", "../../config.py", value={"bytes": 1, "sha256": "0"}),
    "the folder as a file": at("files", "", value={"bytes": 1, "sha256": "0"}),
    "one file more": at("files", "more.npy", value={"bytes": 1, "sha256": "0"}),
    "a deep value": at("description", "root", value=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_manifests_that_do_not_fit(foreign: Place, attack: str) -> None:
    foreign.forge(MANIFESTS[attack])
    assert foreign.query()[0] == 1
    assert store.precision_of(foreign.home, "package:theirs") is None
    assert foreign.index()[0] == 0


@pytest.mark.parametrize("name", ["../code", "/etc", "", "0123456789abcdef", None, ["a"]])
def test_folders_that_a_manifest_names(foreign: Place, name: Any) -> None:
    manifest = foreign.manifest() | {"folder": name}
    (foreign.home / MANIFEST).write_bytes(store._dumps(manifest))
    assert "it is not what was written" in foreign.query()[1]


def test_a_manifest_of_any_depth(foreign: Place) -> None:
    """Whether it cannot be read any more, or not be written."""
    manifest = foreign.manifest()
    for depth in range(600, 1000):
        text = json.dumps(manifest | {"deep": 0}).replace("0}", "[" * depth + "]" * depth + "}")
        (foreign.home / MANIFEST).write_text(text)
        with pytest.raises(DamagedIndexError):
            store.read_manifest(foreign.home)


def test_a_manifest_without_end(foreign: Place) -> None:
    with open(foreign.home / MANIFEST, "ab") as file:
        file.truncate(10**12)
    assert "is damaged" in foreign.query()[1]


# --- a whole index of another machine ---


def test_a_foreign_index_is_built_anew(foreign: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HashingModel()
    monkeypatch.setattr(cli, "load", lambda settings: model)
    assert store.precision_of(foreign.home, "package:theirs") is None
    status, said = foreign.index()
    assert status == 0
    assert "note: built anew, as the old index cannot be used: it was not made on this mach" in said
    assert len(model.encoded) == DIFFERENT
    assert Index(foreign.home).own
    assert "nothing had changed" in foreign.index()[1]
    assert store.precision_of(foreign.home, DEFAULT) == "float32"


@pytest.mark.parametrize("forged", [None, "0" * 32, "", 3, ["a"]])
def test_a_changed_index_is_foreign(made: Place, forged: Any) -> None:
    sealed = json.loads((made.home / MANIFEST).read_bytes())["seal"]
    made.forge(at("description", "limit", value=5))
    for found in (forged, sealed):
        manifest = made.manifest() | {"seal": found}
        (made.home / MANIFEST).write_bytes(store._dumps(manifest))
        assert not Index(made.home).own


def test_the_graph_of_a_foreign_index(made: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is searched without; its own machine takes it."""
    import faiss

    _, own = made.query()
    assert "not made on this machine" not in own

    def read(content: object) -> None:
        raise AssertionError("faiss was given a graph")

    monkeypatch.setattr(faiss, "deserialize_index", read)
    with pytest.raises(AssertionError, match="faiss was given a graph"):
        made.query()
    monkeypatch.setenv("XDG_STATE_HOME", str(made.outside / "another state"))
    status, said = made.query("--model", "package:mine")
    assert status == 0
    assert said.split(" (")[0] == own.split(" (")[0]
    assert "note: the index was not made on this machine: searched exactly" in said


def test_the_model_of_a_foreign_index(made: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may not choose which file is loaded; packages are installed by their user."""
    asked: list[str] = []

    def load(settings: Settings) -> HashingModel:
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


def test_the_code_of_a_foreign_index(made: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies around the index; one's own may lie elsewhere."""
    elsewhere = str(made.outside / "elsewhere")
    assert made.index("--index", elsewhere)[0] == 0
    assert "def open_connection" in made.query("--index", elsewhere)[1]
    monkeypatch.setenv("XDG_STATE_HOME", str(made.outside / "another state"))
    assert "not of the folder that it lies in" in made.query("--index", elsewhere)[1]


# --- the gain of a model ---


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gain(tmp_path: Path, damage: str) -> None:
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
def test_a_gain_that_is_none(tmp_path: Path, gain: str, data: str) -> None:
    text = f'{{"gain": {gain}, "interval": [0.5, 4.5], "data": {data}}}'
    (tmp_path / GAIN).write_text(text)
    assert "is not readable" in decide("measured", HashingModel(), str(tmp_path)).reason


def test_a_gain_that_would_write_to_a_terminal(
    made: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "decide", lambda *_: Decision(False, "\x1b[2J not measured"))
    assert "\\x1b[2J not measured" in made.query()[1]


# --- names and numbers ---


def found_in(place: Place) -> Searcher:
    return Searcher(Index(place.home), HashingModel(), Decision(False, "never"))


def test_names_that_are_no_text(place: Place) -> None:
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
def test_numbers_of_the_page(made: Place, top: str) -> None:
    with PageServer(lambda: found_in(made), Request(""), port=0) as server:
        status, page = server.page({"q": "server", "top": top})
        assert status == 400
        assert b"from 1 to 100" in page
        assert server.page({"q": "server", "top": "100"})[0] == 200


@pytest.mark.parametrize(
    "arguments",
    [
        *(["serve", "--port", port] for port in ("65536", "99999", "-1", "9" * 5000)),
        *(["query", "x", option, "10001"] for option in ("--top", "--k", "--context")),
        *(["query", "x", option, "9" * 5000] for option in ("--top", "--k", "--context")),
        ["index", ".", "--max-bytes", "9" * 18],
    ],
)
def test_numbers_of_a_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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
def test_places_that_are_none(
    place: Place, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.outside / "loop").symlink_to("loop")
    monkeypatch.chdir(place.root)
    assert place.run(*options)[0] == 1


def test_a_working_folder_that_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = place.outside / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert place.run("query", "x")[0] == 1


def test_no_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(settings: Settings) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "load", load)
    assert place.index()[1] == "tenfold-search: out of memory\n"


def test_a_large_limit_takes_no_memory(place: Place) -> None:
    assert place.index("--max-bytes", str(10**12))[0] == 0
