"""Indexing: only what is new is worked on, and an index is whole, old or not there."""

import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.extraction import functions
from methods.cascode.search import indexing, store
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import text_of
from methods.cascode.search.store import DATABASE, FOLDER, SearchError, locked
from tests.unit.cascode_search_toy import FILES, HashingModel, build, content, write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree((tmp_path / "code").resolve())


def many(count: int, file: int = 0) -> dict[str, str]:
    """A file of `count` functions that no other one has."""
    lines = [f"def word{file}_number{i}(a):\n    return a + {i} * {file}\n" for i in range(count)]
    return {f"many{file}.py": "\n".join(lines)}


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a process of its own, minus the signal that ended it."""
    if (pid := os.fork()) == 0:
        status = 99
        try:
            work()
            status = 0
        except SearchError as error:
            status = 1 if "then run the same command to go on" in str(error) else 98
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_an_index_holds(root):
    report = build(root)
    index = Index(root / FOLDER)
    assert (report.seen, report.files, report.functions, report.texts) == (4, 4, 5, 4)
    assert index.counts == {"files": 4, "functions": 5, "texts": 4}
    places = [index.place(number) for number in range(5)]
    assert [(p.file.path, p.name, p.kind, p.start_line, p.end_line, p.row) for p in places] == [
        ("config.py", "read_config", 0, 4, 10, 0),
        ("config.py", "Config", 1, 13, 16, 1),
        ("config.py", "Config.save", 0, 14, 16, 2),
        ("net/client.py", "open_connection", 0, 1, 3, 3),
        ("net/copy_of_client.py", "open_connection", 0, 4, 6, 3),
    ]
    assert index.places(3) == [3, 4]
    assert index.text(2).split("\n")[:2] == ["Write the settings to disk.", "config save"]
    assert index.vectors.dtype == np.float16
    assert report.bytes == index.bytes > 0


def test_a_vector_is_of_description_and_code(root):
    """The description says the path, so that equal functions of other files have another one."""
    described = "config: config save. Write the settings to disk."
    for text, pieces in (
        ("both", [2 * HashingModel().encode_codes([described])[0], None]),
        ("short", [HashingModel().encode_codes([described])[0]]),
        ("code", [None]),
    ):
        model = HashingModel()
        build(root, model, text=text)
        index = Index(root / FOLDER)
        code = HashingModel().encode_codes([index.text(2)])[0]
        total = np.sum([code if piece is None else piece for piece in pieces], axis=0)
        expected = total / np.linalg.norm(total)
        np.testing.assert_allclose(index.vectors[2], expected, atol=1e-3)
        assert (described in model.encoded) == (text != "code")
    assert not any("TCP" in text for text in model.encoded)


def test_text_of_a_function():
    (save,) = functions(FILES["net/client.py"], "python")
    assert text_of(save, "code").startswith("def open_connection ( host , port ) : return socket")
    about, name, code = text_of(save, "both").split("\n")
    assert (about, name) == ("Connect to a server by TCP.", "open connection")
    assert code == text_of(save, "code")
    # A literal's value may be no text; tokenisers refuse it.
    (function,) = functions('def f():\n    "half \\ud800 a pair"\n    return 1\n', "python")
    assert text_of(function, "both").startswith("half ? a pair\n")


def test_an_index_elsewhere(root, tmp_path):
    home = (tmp_path / "elsewhere").resolve()
    build(root, home=home)
    assert Index(home).root == root
    assert not (root / FOLDER).exists()
    inside = root / "my_index"
    build(root, home=inside)
    (inside / "code.py").write_text("def f(): return 1\n")
    assert build(root, home=inside).unchanged, "the index does not index itself"


def test_an_index_moves_with_its_folder(root):
    build(root)
    moved = root.rename(root.parent / "moved")
    assert Index(moved / FOLDER).root == moved
    assert build(moved).unchanged


# --- only what has changed ---


def test_changed_files_only(root):
    build(root)
    before, model = content(root / FOLDER), HashingModel()
    report = build(root, model)
    assert report.unchanged
    assert (report.extracted, report.encoded, model.encoded) == (0, 0, [])
    assert content(root / FOLDER) == before
    write_tree(root, {"config.py": FILES["config.py"] + "\n\ndef added():\n    return 5\n"})
    (root / "empty.py").unlink()
    model = HashingModel()
    report = build(root, model)
    assert (report.extracted, report.encoded) == (1, 1)
    assert model.encoded[1:] == ["config: added. "]
    assert model.encoded[0].split("\n")[1] == "added"
    assert Index(root / FOLDER).counts == {"files": 3, "functions": 6, "texts": 5}
    # A function that has moved in its file is not encoded again; in another one its path differs.
    write_tree(root, {"net/client.py": "\n\n\n" + FILES["net/client.py"]})
    report = build(root)
    assert (report.extracted, report.encoded) == (1, 0)
    (root / "net/client.py").rename(root / "moved.py")
    report = build(root)
    assert (report.extracted, report.encoded) == (0, 1)
    index = Index(root / FOLDER)
    assert [index.place(number).file.path for number in index.places(4)] == [
        "moved.py",
        "net/copy_of_client.py",
    ]


def test_another_model(root):
    build(root)
    model = HashingModel("2")
    report = build(root, model)
    assert (report.extracted, report.encoded) == (0, 5)
    assert any("another model" in note for note in report.notes)
    assert Index(root / FOLDER).description["model"]["fingerprint"] == "fingerprint2"


def test_another_version_of_the_tool(root, monkeypatch):
    """It reads all functions anew; vectors of equal texts stay."""
    build(root)
    monkeypatch.setattr(store, "tool_version", lambda: "0.0.1+other")
    with pytest.raises(SearchError, match=r"another version of the tool .*0\.0\.1\+other.*again"):
        Index(root / FOLDER)
    report = build(root)
    assert (report.extracted, report.encoded, report.unchanged) == (4, 0, False)
    assert Index(root / FOLDER).description["tool"] == "0.0.1+other"


def test_another_format(root, monkeypatch):
    build(root)
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", 5)
        with pytest.raises(SearchError, match=r"\(format 4; this is .* format 5\): run `tenf"):
            Index(root / FOLDER)
        assert build(root).encoded == 5


@settings(max_examples=6)
@given(
    versions=st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from("wxyz"), min_size=1),
        min_size=2,
        max_size=4,
    )
)
def test_an_updated_index_is_a_fresh_one(tmp_path_factory, versions):
    """Whatever was there before: files come, change, move and go."""

    def tree(root: Path, version: dict[str, str]) -> None:
        for path in root.glob("*.py"):
            path.unlink()
        files = {f"{n}.py": f"def name_{t}():\n    return {t}{t}\n" for n, t in version.items()}
        write_tree(root, files)

    updated, fresh = (tmp_path_factory.mktemp("tree").resolve() for _ in range(2))
    for version in versions:
        tree(updated, version)
        build(updated)
    tree(fresh, versions[-1])
    build(fresh)
    assert content(updated / FOLDER) == content(fresh / FOLDER)


# --- killed, disturbed, out of space ---


@pytest.mark.parametrize(
    ("owner", "name", "number", "earlier", "left"),
    [
        (HashingModel, "encode_codes", 0, True, 11),
        (HashingModel, "encode_codes", 2, False, 13),
        (indexing, "read_bytes", 1, True, 11),
        (indexing, "parts_of", 0, False, 0),
        (store, "_seal", 1, True, 0),  # while the index is published
    ],
    ids=["batch 0", "batch 2", "reading", "packing", "publishing"],
)
def test_killed_and_run_again(tmp_path, monkeypatch, owner, name, number, earlier, left):
    """kill -9, with an index from before or without; then the same one: a kill loses one batch."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    monkeypatch.setattr(indexing, "READ_BATCH", 2)
    disturbed, undisturbed = (write_tree((tmp_path / folder).resolve()) for folder in "ab")
    for root in (disturbed, undisturbed):
        if earlier:
            build(root)
        write_tree(root, many(5) | many(6, file=1))
    build(undisturbed)

    calls, function = iter(range(1000)), getattr(owner, name)

    def dying(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    def run() -> None:
        monkeypatch.setattr(owner, name, dying)
        build(disturbed)

    assert in_child(run) == -signal.SIGKILL
    if earlier:
        assert len(Index(disturbed / FOLDER)) == 4, "the old index answers until the new one does"
    else:
        with pytest.raises(SearchError, match=r"no index in .* yet: a run was stopped"):
            Index(disturbed / FOLDER)
    report = build(disturbed)
    assert (report.notes, report.encoded) == ([], left)
    assert content(disturbed / FOLDER) == content(undisturbed / FOLDER)


class Dying(sqlite3.Connection):
    """Its process is killed within a transaction that has filled SQLite's own memory."""

    def executemany(self, sql: str, rows: object) -> sqlite3.Cursor:
        if "parts" in sql:
            self.execute("PRAGMA cache_size = 1")
            super().executemany(sql, [("more", bytes(100_000))] * 20)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().executemany(sql, rows)  # type: ignore[arg-type]


def test_killed_while_pages_are_written(root, monkeypatch):
    """The next reader takes them back."""
    build(root)
    before = content(root / FOLDER)
    connect = sqlite3.connect

    def dying(*arguments: object, **options: object) -> sqlite3.Connection:
        return connect(*arguments, factory=Dying, **options)  # type: ignore[call-overload]

    def run() -> None:
        monkeypatch.setattr(sqlite3, "connect", dying)
        write_tree(root, many(3))
        build(root)

    assert in_child(run) == -signal.SIGKILL
    assert (root / FOLDER / f"{DATABASE}-journal").stat().st_size > 0
    assert len(Index(root / FOLDER)) == 4
    for path in root.glob("many*.py"):
        path.unlink()
    assert build(root).unchanged
    assert content(root / FOLDER) == before


@pytest.mark.slow
def test_killed_from_outside(tmp_path, monkeypatch):
    """At any moment, again and again."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    encode = HashingModel.encode_queries

    def slowly(self, texts):
        time.sleep(0.02)
        return encode(self, texts)

    monkeypatch.setattr(HashingModel, "encode_queries", slowly)
    files = [item for number in range(20) for item in many(9, number).items()]
    disturbed, undisturbed = (
        write_tree((tmp_path / name).resolve(), FILES | dict(files)) for name in "ab"
    )
    build(undisturbed)
    kills, draw = 0, random.Random(0)
    for delay in [draw.uniform(0.005, 0.15) for _ in range(20)]:
        if (pid := os.fork()) == 0:
            build(disturbed)
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert kills >= 5
    build(disturbed)
    assert content(disturbed / FOLDER) == content(undisturbed / FOLDER)


@pytest.mark.parametrize("kilobytes", [1, 100])
def test_a_full_disk(root, kilobytes):
    """While batches are kept, or while the index is written."""
    build(root)
    before = content(root / FOLDER)
    write_tree(root, many(300))

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
        build(root)

    assert in_child(run) == 1
    with store.reading(root / FOLDER) as database:
        rows = database.execute("SELECT name, content FROM parts").fetchall()
    assert dict(rows) == before
    assert len(Index(root / FOLDER)) == 4
    build(root)
    assert len(Index(root / FOLDER)) == 304


def test_a_folder_that_cannot_be_written(tmp_path, root):
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchError, match=r"cannot write to .*file.*there was none.*--index PATH"):
        build(root, home=tmp_path / "file" / "index")


def test_two_commands_at_once(root):
    def refused() -> None:
        with pytest.raises(SearchError, match=r"another `tenfold.* \(process \d+ on .*\): wait"):
            build(root)

    with locked(root / FOLDER):
        assert in_child(refused) == 0
    assert build(root).functions == 5


@pytest.mark.parametrize(
    "begun",
    [
        {".gitignore": b""},
        {".gitignore": b"*\n"},
        {".gitignore": b"*\n", "CACHEDIR.TAG": b""},
        {".gitignore": b"*\n", "CACHEDIR.TAG": b"Signature: 8a47"},
        {"CACHEDIR.TAG": b""},  # older code began with it
    ],
)
def test_killed_while_the_folder_is_marked(root, begun):
    build(root)
    names = (".gitignore", "CACHEDIR.TAG")
    whole = {name: (root / FOLDER / name).read_bytes() for name in names}
    shutil.rmtree(root / FOLDER)
    (root / FOLDER).mkdir()
    for name, mark in begun.items():
        (root / FOLDER / name).write_bytes(mark)
    assert build(root).functions == 5
    assert {name: (root / FOLDER / name).read_bytes() for name in names} == whole


@pytest.mark.parametrize(
    ("name", "mark"),
    [(".gitignore", b"build\n"), ("CACHEDIR.TAG", b"Signature: 8a47 of another tool\n")],
)
def test_a_folder_that_something_else_has_marked_is_no_index(root, name, mark):
    (root / FOLDER).mkdir()
    (root / FOLDER / name).write_bytes(mark)
    with pytest.raises(SearchError, match="holds other things"):
        build(root)
    assert [path.name for path in (root / FOLDER).iterdir()] == [name]
    assert (root / FOLDER / name).read_bytes() == mark
    # A folder of other things would be in the way, and be deleted.
    with pytest.raises(SearchError, match="code holds other things: --index names a folder"):
        build(root, home=root)
    assert {path.name for path in root.iterdir()} == {"config.py", "empty.py", "net", FOLDER}


# --- bad input ---


def test_a_changed_part(root):
    """Found when it is read, and built anew."""
    build(root)
    before = content(root / FOLDER)
    for name in before:
        with closing(sqlite3.connect(root / FOLDER / DATABASE)) as database, database:
            longer = "UPDATE parts SET content = CAST(content || x'20' AS BLOB) WHERE name = ?"
            database.execute(longer, (name,))
        if name == "texts":  # which few need
            index = Index(root / FOLDER)
            with pytest.raises(SearchError, match=r"index\.db is damaged \(it was changed.*again"):
                index.text(0)
        elif name != "manifest":
            with pytest.raises(SearchError, match=r"index\.db is damaged \(it was changed.*again"):
                Index(root / FOLDER)
            assert build(root).encoded == 5
        assert content(root / FOLDER).keys() == before.keys()
    with pytest.raises(SearchError, match=r"no index in .*tenfold-search index DIR"):
        Index(root)


def test_parts_in_pieces(root, monkeypatch):
    """SQLite's rows have a limit."""
    build(root)
    monkeypatch.setattr(store, "PIECE", 1_500)
    write_tree(root, many(40))
    build(root)
    monkeypatch.undo()
    pieces = Index(root / FOLDER)
    shutil.rmtree(root / FOLDER)
    build(root)
    assert pieces.manifest == Index(root / FOLDER).manifest


def test_one_state_is_read(root, monkeypatch):
    """Another process publishes while an index is opened."""
    build(root)
    read = store.read_parts
    write_tree(root, many(1))

    def later(*arguments: object) -> object:
        monkeypatch.undo()
        monkeypatch.setattr(store, "_WAIT", 0.05)
        assert in_child(lambda: build(root)) == 1, "its commit waits for readers"
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "read_parts", later)
    assert len(Index(root / FOLDER)) == 4
    build(root)
    assert len(Index(root / FOLDER)) == 5


def test_a_folder_without_functions(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchError, match=r"no function found in .*: 0 files of c, cpp,"):
        build((tmp_path / "empty").resolve())
    build(root)
    for path in root.rglob("*.py"):
        path.write_bytes(b"\0")
    with pytest.raises(SearchError, match=r"4 files .* left out: 4 binary\. No index was written"):
        build(root)
    assert len(Index(root / FOLDER)) == 4


def test_files_that_cannot_be_used_are_counted(root, monkeypatch):
    """And the others are indexed."""
    (root / "latin.py").write_bytes(b"def caf\xe9():\n    return 'caf\xe9'\n")
    (root / "large.py").write_text("x = 1\n" * 1000)
    (root / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    opened = indexing.read_bytes

    def vanishing(root: Path, path: str, limit: int) -> bytes:
        if path == "empty.py":
            (root / path).unlink()
        return opened(root, path, limit)

    monkeypatch.setattr(indexing, "read_bytes", vanishing)
    report = build(root, limit=5500)
    assert report.skipped == {"vanished": ["empty.py"], "too large": ["deep.py", "large.py"]}
    assert (report.files, report.functions, report.seen) == (4, 6, 7)
    assert report.notes == ["not UTF-8, read as Latin-1: latin.py"]


@pytest.mark.parametrize(
    "source", ["x = " + "(" * 9000 + ")" * 9000, "-" * 90_000 + "1", "def f(:"]
)
def test_files_that_cannot_be_parsed(root, source):
    """Even where the parser runs out of stack."""
    (root / "bad.py").write_text(source)
    report = build(root)
    assert report.kinds["function"] == 4
    assert report.files + len(report.skipped["cannot be parsed"]) == 5 or report.skipped


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model(root, monkeypatch, value):
    monkeypatch.setattr(
        HashingModel,
        "encode_codes",
        lambda self, texts, progress: np.full((len(texts), self.dimension), value),
    )
    with pytest.raises(SearchError, match="no usable vectors"):
        build(root)
