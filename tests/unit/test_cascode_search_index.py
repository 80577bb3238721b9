"""Indexing: only what is new is worked on, and an index is whole, old or not there."""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.extraction import functions
from methods.cascode.search import indexing, store
from methods.cascode.search.indexing import text_of
from methods.cascode.search.store import FOLDER, MANIFEST, Index, SearchError, locked, precision_of
from methods.cascode.search.vectors import NearestVectors, build_graph, resolve_kind
from tests.unit.cascode_search_toy import FILES, HashingModel, build, content, write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree((tmp_path / "code").resolve())


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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


# --- content ---


def test_what_an_index_holds(root: Path) -> None:
    report = build(root)
    index = Index(root / FOLDER)
    assert (report.seen, report.files, report.functions, report.texts) == (4, 4, 4, 3)
    assert index.counts == {"files": 4, "functions": 4, "texts": 3}
    places = [index.place(number) for number in range(4)]
    assert [(p.file.path, p.name, p.start_line, p.end_line, p.row) for p in places] == [
        ("config.py", "read_config", 4, 10, 0),
        ("config.py", "Config.save", 14, 16, 1),
        ("net/client.py", "open_connection", 1, 3, 2),
        ("net/copy_of_client.py", "open_connection", 4, 6, 2),
    ]
    assert index.places(2) == [2, 3]
    assert index.text(1).split("\n")[:2] == ["Write the settings to disk.", "config save"]
    assert index.vectors.dtype == np.float16
    model = HashingModel()
    expected = model.encode_codes([index.text(row) for row in range(3)])
    np.testing.assert_allclose(index.vectors, expected, atol=1e-3)
    assert report.bytes == index.files_bytes > 0


def test_text_of_a_function() -> None:
    (save,) = functions(FILES["net/client.py"], "python")
    assert text_of(save, "code").startswith("def open_connection ( host , port ) : return socket")
    about, name, code = text_of(save, "both").split("\n")
    assert (about, name) == ("Connect to a server by TCP.", "open connection")
    assert code == text_of(save, "code")


def test_half_characters_in_documentation() -> None:
    """A literal's value may be no text; tokenisers refuse it."""
    (function,) = functions('def f():\n    "half \\ud800 a pair"\n    return 1\n', "python")
    assert text_of(function, "both").startswith("half ? a pair\n")


def test_code_alone(root: Path) -> None:
    model = HashingModel()
    build(root, model, text="code")
    assert not any("TCP" in text for text in model.encoded)


def test_an_index_elsewhere(root: Path, tmp_path: Path) -> None:
    home = (tmp_path / "elsewhere").resolve()
    build(root, home=home)
    assert Index(home).root == root
    assert not (root / FOLDER).exists()
    inside = root / "my_index"
    build(root, home=inside)
    (inside / "code.py").write_text("def f(): return 1\n")
    assert build(root, home=inside).unchanged, "the index does not index itself"


def test_an_index_moves_with_its_folder(root: Path) -> None:
    build(root)
    moved = root.rename(root.parent / "moved")
    assert Index(moved / FOLDER).root == moved
    assert build(moved).unchanged


# --- only what has changed ---


def test_nothing_changed(root: Path) -> None:
    build(root)
    before, model = content(root / FOLDER), HashingModel()
    report = build(root, model)
    assert report.unchanged
    assert (report.extracted, report.encoded, model.encoded) == (0, 0, [])
    assert content(root / FOLDER) == before


def test_changed_files_only(root: Path) -> None:
    build(root)
    write_tree(root, {"config.py": FILES["config.py"] + "\n\ndef added():\n    return 5\n"})
    (root / "empty.py").unlink()
    model = HashingModel()
    report = build(root, model)
    assert (report.extracted, report.encoded) == (1, 1)
    assert [text.split("\n")[1] for text in model.encoded] == ["added"]
    assert Index(root / FOLDER).counts == {"files": 3, "functions": 5, "texts": 4}


def test_a_moved_function_is_not_encoded_again(root: Path) -> None:
    build(root)
    (root / "net/client.py").unlink()
    (root / "net/copy_of_client.py").unlink()
    write_tree(root, {"deep/moved.py": "\n\n\n" + FILES["net/client.py"]})
    report = build(root)
    assert (report.extracted, report.encoded) == (1, 0)
    index = Index(root / FOLDER)
    assert index.place(index.places(2)[0]).file.path == "deep/moved.py"


def test_another_model(root: Path) -> None:
    build(root)
    model = HashingModel("2")
    report = build(root, model)
    assert (report.extracted, report.encoded) == (0, 3)
    assert any("another model" in note for note in report.notes)
    assert Index(root / FOLDER).description.model["fingerprint"] == "fingerprint2"


def test_another_version_of_the_tool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads all functions anew; vectors of equal texts stay."""
    build(root)
    for module in (store, indexing):
        monkeypatch.setattr(module, "tool_version", lambda: "0.0.1+other")
    with pytest.raises(SearchError, match=r"another version of the tool .*0\.0\.1\+other.*again"):
        Index(root / FOLDER)
    report = build(root)
    assert (report.extracted, report.encoded, report.unchanged) == (4, 0, False)
    assert Index(root / FOLDER).description.tool == "0.0.1+other"


def test_another_format(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root)
    monkeypatch.setattr(store, "FORMAT", 3)
    with pytest.raises(SearchError, match=r"format 2; this is .* format 3"):
        Index(root / FOLDER)
    assert build(root).encoded == 3


@settings(max_examples=10)
@given(
    versions=st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from("wxyz"), min_size=1),
        min_size=2,
        max_size=4,
    )
)
def test_an_updated_index_is_a_fresh_one(
    tmp_path_factory: pytest.TempPathFactory, versions: list[dict[str, str]]
) -> None:
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


def at_batch(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        calls = iter(range(100))
        encode = HashingModel.encode_codes

        def dying(self: HashingModel, *arguments: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(self, *arguments)  # type: ignore[arg-type]

        patch.setattr(HashingModel, "encode_codes", dying)

    return plant


def at_call(owner: object, name: str, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        calls, function = iter(range(1000)), getattr(owner, name)

        def dying(*arguments: object, **options: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        patch.setattr(owner, name, dying)

    return plant


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "plant",
    [
        at_batch(0),
        at_batch(2),
        at_call(indexing, "read_bytes", 3),
        at_call(np, "save", 1),
        at_call(store, "sync", 2),
        at_call(store.Path, "rename", 0),
        at_call(os, "replace", 0),
        at_call(indexing, "tidy", 0),
    ],
    ids=["batch 0", "batch 2", "reading", "writing", "sync", "rename", "replace", "tidying"],
)
def test_killed_and_run_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    earlier: bool,
) -> None:
    """kill -9 at any time, with an index from before or without; then the same bytes."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    monkeypatch.setattr(indexing, "READ_BATCH", 2)
    disturbed, undisturbed = (write_tree((tmp_path / name).resolve()) for name in "ab")
    for root in (disturbed, undisturbed):
        if earlier:
            build(root)
        write_tree(root, many(5) | many(6, file=1))
    build(undisturbed)

    def run() -> None:
        plant(monkeypatch)
        build(disturbed)

    assert in_child(run) == -signal.SIGKILL
    assert (disturbed / FOLDER / MANIFEST).exists() or not earlier
    if earlier:
        assert len(Index(disturbed / FOLDER)) >= 3, "the old index answers until the new one does"
    build(disturbed)
    assert content(disturbed / FOLDER) == content(undisturbed / FOLDER)


def test_killed_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment, again and again."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    disturbed, undisturbed = (
        write_tree((tmp_path / name).resolve(), FILES | many(30)) for name in "ab"
    )
    build(undisturbed)
    kills = 0
    for delay in (0.01, 0.03, 0.07, 0.11, 0.13):
        if (pid := os.fork()) == 0:
            build(disturbed, HashingModel(seconds=0.02))
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert kills >= 2
    build(disturbed)
    assert content(disturbed / FOLDER) == content(undisturbed / FOLDER)


def test_a_kill_loses_one_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "BATCH", 4)
    write_tree(root, many(10))

    def run() -> None:
        at_batch(2)(monkeypatch)
        build(root)

    in_child(run)
    model = HashingModel()
    report = build(root, model)
    assert (report.encoded, len(model.encoded)) == (13 - 8, 13 - 8)
    assert report.extracted == 0


def test_its_precision_is_known_after_a_kill(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured anew, it might come out otherwise."""
    home = root / FOLDER
    assert precision_of(home, "hashing") is None
    monkeypatch.setattr(HashingModel, "precision", "bfloat16")
    with monkeypatch.context() as patch:

        def run() -> None:
            at_batch(0)(patch)
            build(root)

        in_child(run)
    assert precision_of(home, "hashing") == "bfloat16"
    build(root)
    assert precision_of(home, "hashing") == "bfloat16"
    assert precision_of(home, "another model") is None


@pytest.mark.parametrize("kilobytes", [1, 9, 60])
def test_a_full_disk(root: Path, kilobytes: int) -> None:
    """While batches are kept, or while the index is written."""
    build(root)
    before = content(root / FOLDER)
    for file in range(4):
        write_tree(root, many(100, file))

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
        build(root)

    assert in_child(run) == 1
    after = content(root / FOLDER)
    assert {name: after[name] for name in before} == before
    assert len(Index(root / FOLDER)) == 3
    build(root)
    assert len(Index(root / FOLDER)) == 403


def test_a_folder_that_cannot_be_written(tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchError, match=r"cannot write to .*file.*there was none.*--index PATH"):
        build(root, home=tmp_path / "file" / "index")


def test_two_commands_at_once(root: Path) -> None:
    def refused() -> None:
        with pytest.raises(SearchError, match=r"another `tenfold.* \(process \d+ on .*\): wait"):
            build(root)

    with locked(root / FOLDER):
        assert in_child(refused) == 0
    assert build(root).functions == 4


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
def test_killed_while_the_folder_is_marked(root: Path, begun: dict[str, bytes]) -> None:
    build(root)
    names = (".gitignore", "CACHEDIR.TAG")
    whole = {name: (root / FOLDER / name).read_bytes() for name in names}
    shutil.rmtree(root / FOLDER)
    (root / FOLDER).mkdir()
    for name, mark in begun.items():
        (root / FOLDER / name).write_bytes(mark)
    assert build(root).functions == 4
    assert {name: (root / FOLDER / name).read_bytes() for name in names} == whole


@pytest.mark.parametrize(
    ("name", "mark"),
    [(".gitignore", b"build\n"), ("CACHEDIR.TAG", b"Signature: 8a47 of another tool\n")],
)
def test_a_folder_that_something_else_has_marked_is_no_index(
    root: Path, name: str, mark: bytes
) -> None:
    (root / FOLDER).mkdir()
    (root / FOLDER / name).write_bytes(mark)
    with pytest.raises(SearchError, match="holds other things"):
        build(root)
    assert [path.name for path in (root / FOLDER).iterdir()] == [name]
    assert (root / FOLDER / name).read_bytes() == mark


def test_a_folder_of_other_things_is_no_index(root: Path) -> None:
    """Its content would be in the way, and be deleted."""
    with pytest.raises(SearchError, match="code holds other things: --index names a folder"):
        build(root, home=root)
    assert {path.name for path in root.iterdir()} == {"config.py", "empty.py", "net"}


def test_damaged_remains_of_a_killed_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        at_batch(0)(monkeypatch)
        build(root)

    in_child(run)
    (remains,) = (root / FOLDER).glob("unfinished-*.db")
    remains.write_bytes(remains.read_bytes()[:5000] + b"damaged" * 700)
    monkeypatch.undo()
    assert build(root).encoded == 3


# --- bad input ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize(
    "name", ["vectors.npy", "functions.json", "texts.bin", "words.rows.npy", MANIFEST]
)
def test_a_damaged_index(root: Path, name: str, damage: Callable[[Path], object]) -> None:
    """Found when it is read, and built anew."""
    build(root)
    before = content(root / FOLDER)
    (path,) = (root / FOLDER).rglob(name)
    damage(path)
    with pytest.raises(SearchError, match=r"index|no index"):
        Index(root / FOLDER)
    report = build(root)
    assert report.encoded == 3
    assert content(root / FOLDER) == before
    if name != MANIFEST or path.exists():
        assert report.notes or damage is Path.unlink


def test_messages_of_damage(root: Path) -> None:
    build(root)
    (path,) = (root / FOLDER).rglob("vectors.npy")
    cut(path)
    with pytest.raises(SearchError, match=r"vectors\.npy is damaged, it was cut off.*again"):
        Index(root / FOLDER)
    with pytest.raises(SearchError, match=r"no index in .*tenfold-search index DIR"):
        Index(root)
    (root / FOLDER / MANIFEST).write_text("[]")
    with pytest.raises(SearchError, match=r"index\.json is damaged.*again"):
        Index(root / FOLDER)


def test_an_index_that_is_replaced_while_it_is_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root)
    read = store.read_manifest
    stale = [read(root / FOLDER)]
    write_tree(root, many(1))
    build(root)
    monkeypatch.setattr(
        store, "read_manifest", lambda *arguments: stale.pop() if stale else read(*arguments)
    )
    assert len(Index(root / FOLDER)) == 4


def test_an_index_cannot_name_other_files(root: Path) -> None:
    build(root)
    path = root / FOLDER / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../config.py"] = manifest["files"].pop("vectors.npy")
    manifest["folder"] = store._folder_name(store._content(manifest))
    path.write_text(json.dumps(manifest))
    with pytest.raises(SearchError, match="it names files that lie elsewhere"):
        Index(root / FOLDER)


def test_a_folder_without_functions(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchError, match=r"no function found in .*: 0 files of python,"):
        build((tmp_path / "empty").resolve())
    build(root)
    before = content(root / FOLDER)
    for path in root.rglob("*.py"):
        path.write_bytes(b"\0")
    with pytest.raises(SearchError, match=r"4 files .* left out: 4 binary\. No index was written"):
        build(root)
    after = content(root / FOLDER)
    assert {name: after[name] for name in before} == before


def test_files_that_cannot_be_used_are_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (report.files, report.functions, report.seen) == (4, 5, 7)
    assert report.notes == ["not UTF-8, read as Latin-1: latin.py"]


@pytest.mark.parametrize(
    "source", ["x = " + "(" * 9000 + ")" * 9000, "-" * 90_000 + "1", "def f(:"]
)
def test_files_that_cannot_be_parsed(root: Path, source: str) -> None:
    """Even where the parser runs out of stack."""
    (root / "bad.py").write_text(source)
    report = build(root)
    assert report.functions == 4
    assert report.files + len(report.skipped["cannot be parsed"]) == 5 or report.skipped


def test_names_that_are_no_text(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    (root / name).write_text("def f():\n    return 'x'\n")
    build(root)
    assert name in {file.path for file in Index(root / FOLDER).files}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model(root: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(
        HashingModel,
        "encode_codes",
        lambda self, texts, progress: np.full((len(texts), self.dimension), value),
    )
    with pytest.raises(SearchError, match="no usable vectors"):
        build(root)


# --- kinds of vector index ---


def unit(count: int, dimension: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_kinds_by_number() -> None:
    numbers = (1, 50_000, 50_001, 500_000, 500_001)
    kinds = [resolve_kind("auto", number) for number in numbers]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivfpq"]
    assert [resolve_kind("hnsw", number) for number in (999, 1_000)] == ["flat", "hnsw"]
    assert [resolve_kind("ivfpq", number) for number in (9_999, 10_000)] == ["flat", "ivfpq"]
    assert resolve_kind("flat", 10**9) == "flat"


def test_too_few_for_a_graph(root: Path) -> None:
    report = build(root, kind="hnsw")
    assert report.kind == Index(root / FOLDER).description.kind == "flat"
    assert report.notes == ["hnsw needs more than 3 functions: the index is flat"]


@pytest.mark.parametrize(("kind", "share"), [("flat", 1.0), ("hnsw", 0.95), ("ivfpq", 0.6)])
def test_candidates_hold_the_nearest(tmp_path: Path, kind: str, share: float) -> None:
    """Most of them where the index is approximate; scores are always exact."""
    vectors = unit(2_000)
    graph = build_graph(kind, vectors)
    assert graph == build_graph(kind, vectors), "the same bytes each time"
    if graph is not None:
        (tmp_path / "graph").write_bytes(graph)
    nearest = NearestVectors(vectors, kind, tmp_path / "graph")
    queries = unit(20).astype(np.float32)[:, ::-1].copy()
    hits = 0
    for query in queries:
        exact = vectors.astype(np.float32) @ query
        rows = nearest.candidates(query, 100)
        np.testing.assert_allclose(nearest.scores(query, rows), exact[rows], atol=1e-6)
        hits += np.isin(np.argsort(-exact)[:10], rows).sum()
        mean, deviation = nearest.spread(query)
        assert abs(mean - exact.mean()) < 0.02
        assert abs(deviation - exact.std()) < 0.02
    assert hits >= share * 200, hits
