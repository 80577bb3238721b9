"""The search benchmarks: labels, grading, made vectors, index measurements, the peer's process."""

import json
import math
import os
import sys
import sysconfig
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search import index_types, precision, semble, systems
from benchmarks.search.function_vectors import extend, neighbour_distances, real_vectors
from benchmarks.search.index_types import KINDS, main, plot, study
from benchmarks.search.measuring import TOOL, Asked, Built, Files, ask, build, exact_tenth, recall
from benchmarks.search.relevance import grades, hit_at_1, ndcg
from benchmarks.search.repository import (
    Label,
    Question,
    _definitions,
    copy_library,
    load_questions,
)
from benchmarks.search.semble import OURS, RERANKER, THEIRS, Row, card, evaluate, interval
from benchmarks.search.systems import Measured, Task, run_ours, run_semble
from benchmarks.speed import peer_environment
from benchmarks.speed.protocol import SpeedError
from methods.cascode.search.store import FOLDER, Index
from tests.unit.cascode_search_toy import HashingModel, write_tree
from tests.unit.cascode_search_toy import build as build_toy

LIBRARY = Path(sysconfig.get_path("stdlib"))
A = Label("a.py", "f", 2, ((1, 10),))
B = Label("a.py", "g", 1, ((12, 20), (40, 50)))
C = Label("b.py", "C.f", 1, ((5, 5),))
QUESTION = Question("how?", (A, B, C), True)
IDEAL = 3 + 1 / math.log2(3) + 1 / 2


# --- questions and labels ---


def test_every_labelled_function_exists() -> None:
    questions, absent = load_questions(LIBRARY)
    assert len(questions) >= 80, absent
    assert sum(question.card for question in questions) == 10
    if sys.version_info[:2] == (3, 11):  # which they were written for
        assert absent == []


def ask_about(tmp_path: Path, *entries: dict[str, object]) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries))
    return path


def test_labels_that_a_python_lacks_are_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, {"new.py": "class A:\n    def f(self):\n        pass\n"})
    source = ask_about(
        tmp_path,
        {"question": "kept", "answers": {"new.py": {"A.f": 2, "A.g": 1}, "gone.py": {"h": 2}}},
        {"question": "dropped", "answers": {"new.py": {"A.f": 1}, "gone.py": {"h": 2}}},
    )
    (question,), absent = load_questions(tmp_path, source)
    assert question == Question("kept", (Label("new.py", "A.f", 2, ((2, 3),)),), False)
    assert absent == ["new.py:A.g", "gone.py:h", "gone.py:h"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"question": "q", "answers": {"new.py": {"f": 3}}}], "grade 3 of new.py:f"),
        ([{"question": "q", "answers": {"new.py": {"f": 2}}}] * 2, "asked twice: q"),
        ([{"question": "q", "answers": {"new.py": {"f": 1}}}], "answers no question"),
    ],
)
def test_bad_questions_are_refused(
    tmp_path: Path, entries: list[dict[str, object]], message: str
) -> None:
    write_tree(tmp_path, {"new.py": "def f():\n    pass\n"})
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path, ask_about(tmp_path, *entries))


def test_definitions_are_found_under_conditions_and_not_in_functions(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "if a:\n    def f(): pass\nelse:\n    def f():\n        def inner(): pass\n"
        "class A:\n    try:\n        async def g(self): pass\n    except E:\n        g = None\n"
    )
    assert _definitions(path) == {"f": [(2, 2), (4, 5)], "A.g": [(8, 8)]}
    assert _definitions(tmp_path / "absent.py") == {}


def test_library_is_copied_once_and_without_packages(tmp_path: Path) -> None:
    folder = copy_library(tmp_path, ("json", "shlex"))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"json/decoder.py", "shlex.py"} <= found
    assert all(path.endswith(".py") and not path.startswith("site-") for path in found)
    assert (folder / "shlex.py").read_bytes() == (LIBRARY / "shlex.py").read_bytes()
    (folder / "shlex.py").write_text("mine")
    assert copy_library(tmp_path, ("shlex", "json")) == folder
    assert (folder / "shlex.py").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    with pytest.raises(ValueError, match="no Python module named jsno"):
        copy_library(tmp_path, ("json", "jsno"))


# --- grading ---


def test_ndcg_by_hand() -> None:
    hits = [[("z.py", 1, 99)], [("a.py", 30, 41)], [("a.py", 3, 4)]]
    ranking = grades(hits, QUESTION)
    assert ranking == [0, 1, 2]
    gain = 1 / math.log2(3) + 3 / 2
    assert ndcg(ranking, QUESTION) == pytest.approx(gain / IDEAL)
    assert ndcg(ranking, QUESTION, depth=2) == pytest.approx(
        1 / math.log2(3) / (3 + 1 / math.log2(3))
    )
    assert ndcg([], QUESTION) == 0
    assert [hit_at_1(r) for r in ([], [0, 2], [1, 2], [2])] == [False, False, False, True]


def test_chunks_of_one_function_count_once_and_take_one_position() -> None:
    hits = [[("a.py", 1, 5)], [("a.py", 6, 11)], [("b.py", 1, 5)]]
    assert grades(hits, QUESTION) == [2, 1]
    assert grades([*hits, [("a.py", 45, 60)], [("a.py", 2, 60)]], QUESTION) == [2, 1, 1]


def test_chunk_over_several_functions_shows_them_all() -> None:
    assert grades([[("a.py", 9, 13)], [("a.py", 1, 8)], [("c.py", 1, 8)]], QUESTION) == [2, 1, 0]


def test_hit_counts_for_each_place_it_stands_in() -> None:
    assert grades([[("z.py", 1, 2), ("b.py", 5, 5)]], QUESTION) == [1]
    assert grades([[("z.py", 1, 2), ("b.py", 6, 6)]], QUESTION) == [0]
    assert grades([[("a.py", 11, 11)]], QUESTION) == [0]


SPANS = st.tuples(st.sampled_from("abz"), st.integers(1, 60), st.integers(0, 30)).map(
    lambda drawn: (f"{drawn[0]}.py", drawn[1], drawn[1] + drawn[2])
)


@given(st.lists(st.lists(SPANS, min_size=1, max_size=2), max_size=15))
def test_ndcg_is_a_share_of_the_ideal(hits: list[list[tuple[str, int, int]]]) -> None:
    ranking = grades(hits, QUESTION)
    assert 0 <= ndcg(ranking, QUESTION) <= 1 + 1e-12
    assert sum(grade > 0 for grade in ranking) <= len(QUESTION.labels)
    whole = [[("a.py", 1, 10)], [("a.py", 12, 20)], [("b.py", 5, 5)]]
    assert ndcg(grades([*whole, *hits], QUESTION), QUESTION) == pytest.approx(1)


def test_interval_of_the_mean() -> None:
    values = np.random.default_rng(0).random(50)
    low, high = interval(values)
    assert low < values.mean() < high
    assert (low, high) == interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 50**0.5, rel=0.15)
    assert interval(np.full(9, 0.25)) == pytest.approx((0.25, 0.25))


# --- the systems ---


def of(name: str, hits: list[list[list[tuple[str, int, int]]]], seconds: float) -> Row:
    measured = Measured(name, hits, [seconds] * 9 + [1.0], 4.0, 2_000_000, 70, 3, ["x.py:1", "y"])
    return evaluate(measured, [QUESTION, Question("why?", (C,), False)])


def test_table_differences_and_card() -> None:
    right, wrong = [("a.py", 1, 2)], [("q.py", 1, 2)]
    rows = [
        of(THEIRS, [[wrong, right], [wrong]], 0.002),
        of(OURS, [[right], [wrong]], 0.02),
        of(f"{RERANKER}first stage", [[wrong], [wrong]], 0.02),
        of("re-ranked", [[right], [[("b.py", 5, 5)]]], 0.08),
    ]
    assert rows[1].ndcg == pytest.approx([3 / IDEAL, 0])
    lines = semble.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    quality = f"{1.5 / IDEAL:.3f} (0.000 to {3 / IDEAL:.3f})"
    assert lines[3].startswith(f"| {OURS} | {quality} | 0.50 | 4.0 | 70 | 2.0 | 20.0, ")
    first, second = semble.differences(rows).splitlines()
    gain = 1.5 / IDEAL * (1 - 1 / math.log2(3))
    assert first.startswith(f"{OURS} - {THEIRS}: NDCG@10 +{gain:.3f}")
    assert first.endswith("warm query 10x the time")
    gain = (3 / IDEAL + 1) / 2
    assert second.startswith(f"re-ranked - {RERANKER}first stage: NDCG@10 +{gain:.3f}")
    assert card(rows, [QUESTION, Question("why?", (C,), False)]).splitlines()[2:] == [
        "| how? | right: `x.py:1` | `x.py:1` |"
    ]


FAKE_SEMBLE = """
import os, types
class SembleIndex:
    stats = types.SimpleNamespace(total_chunks=5, indexed_files=2)
    @classmethod
    def from_path(cls, path, model_path):
        assert os.path.isdir(path) and os.path.isdir(model_path)
        assert os.path.isabs(os.environ["SEMBLE_CACHE_LOCATION"])
        print("chatter")
        return cls()
    def save(self, path):
        os.makedirs(path)
        open(os.path.join(path, "x"), "w").write("12345")
    def search(self, query, top_k, alpha=None):
        if "boom" in query: raise RuntimeError("it went boom")
        chunk = types.SimpleNamespace(file_path="a.py", start_line=3, end_line=9)
        return [] if alpha == 0 else [types.SimpleNamespace(chunk=chunk)] * top_k
"""


@pytest.fixture
def fake_semble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the peer's environment; returns the folder of its static model."""
    files = {
        "semble/__init__.py": FAKE_SEMBLE,
        "semble/index/__init__.py": "",
        "semble/index/dense.py": "def load_model(path): pass\n",
        **{
            f"{name}-0.9.dist-info/METADATA": f"Name: {name}\nVersion: 0.9\n"
            for name in ("semble", "model2vec")
        },
        "static/model": "",
        "model/config.json": "{}",
        "code/a.py": "",
    }
    write_tree(tmp_path, files)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "static"


def test_peer_is_run_in_a_process_of_its_own(fake_semble: Path, tmp_path: Path) -> None:
    task = Task(tmp_path / "code", ["one", "two"], top=3, repeats=2)
    arguments = (Path(sys.executable), str(tmp_path / "model"), fake_semble, tmp_path / "log")
    (words, hybrid), facts = run_semble(task, *arguments)
    assert facts["version"] == "0.9"
    assert facts["distil_seconds"] is None
    assert "variants" not in facts
    assert hybrid.hits == [[[("a.py", 3, 9)]] * 3] * 2
    assert hybrid.titles == ["a.py:3-9"] * 2
    assert words.titles == ["nothing"] * 2
    assert len(hybrid.seconds) == 4
    assert (hybrid.index_bytes, hybrid.items, hybrid.files) == (5, 5, 2)
    assert "chatter" in (tmp_path / "log").read_text()
    with pytest.raises(SpeedError, match=r"see .*log:[\s\S]*it went boom"):
        run_semble(Task(tmp_path / "code", ["boom"], 3, 2), *arguments)


def test_ours_is_run_by_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s")
    model = HashingModel()
    monkeypatch.setattr(systems, "load", lambda settings: model)
    root, home = write_tree(tmp_path / "code"), tmp_path / "index"
    task = Task(root, ["connect to a server", "write the settings"], top=2, repeats=3)
    *first, reranked = run_ours(task, home, "hashing", {"both": 0.3, "vectors": 0.0}, "judged")
    assert [m.name for m in first] == ["both", "vectors"]
    assert len(model.judged) == 2 * 3 * (1 + task.repeats)  # all three texts, each time anew
    for measured in (*first, reranked):
        assert measured.hits[0][0] == [("net/client.py", 1, 3), ("net/copy_of_client.py", 4, 4)]
        assert measured.titles[1] == "config.py:14 Config.save"
        assert [len(hits) for hits in measured.hits] == [2, 2]
        assert len(measured.seconds) == 6
        assert (measured.items, measured.files) == (3, 4)
        assert measured.index_bytes == Index(home).files_bytes
    model.encoded.clear()
    run_ours(task, home, "hashing", {})
    assert len(model.encoded) == 3  # the index is built anew


def test_comparison_from_the_command_line(
    fake_semble: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bm25s")
    monkeypatch.setattr(systems, "load", lambda settings: HashingModel())
    monkeypatch.setattr(peer_environment, "ensure", lambda folder, peer: Path(sys.executable))
    out = tmp_path / "out"
    write_tree(out, {"static-model/model": ""})
    command = [
        "--out",
        str(out),
        "--model",
        str(tmp_path / "model"),
        "--repeats",
        "1",
        "--only",
        "shlex",
    ]
    assert semble.main([*command, "--reranker", "judge.ckpt"]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "semble.md").read_text()
    for name in (THEIRS, OURS, f"{RERANKER}first stage of judge.ckpt", "its first 10 re-ranked"):
        assert f"| {name} | " in printed
    written = json.loads((out / "semble.json").read_text())
    assert len(written["systems"]) == 7
    assert len(written["systems"][OURS]["ndcg_by_question"]) == len(written["questions"]) == 2
    assert semble.main(["--out", str(out), "--only", "this"]) == 1
    assert "answers no question" in capsys.readouterr().err


# --- made vectors ---


def clumps(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors around 40 directions, the spread of each on four axes."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, dimension))
    axes = generator.standard_normal((40, 4, dimension)) / 3
    clump = generator.integers(40, size=count)
    vectors = centres[clump] + np.einsum(
        "nk,nkd->nd", generator.standard_normal((count, 4)), axes[clump]
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_fewer_vectors_are_a_subset() -> None:
    real = clumps(3_000)
    vectors, made = extend(real, 1_000, seed=1)
    assert len(vectors) == 1_000
    assert made.scale == 0
    assert {row.tobytes() for row in vectors} <= {row.tobytes() for row in real}
    assert len({row.tobytes() for row in vectors}) == 1_000


def test_more_vectors_lie_as_far_apart_as_real_ones_would() -> None:
    real, truth = clumps(1_500), clumps(9_000)
    vectors, made = extend(real, 9_000, seed=1)
    assert np.array_equal(vectors[:1_500], real)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert made.distance == pytest.approx(made.aim, rel=0.05)
    wanted = np.median(neighbour_distances(truth[:500], truth, among=True))
    alone = np.median(neighbour_distances(real[:500], real, among=True))
    assert made.distance == pytest.approx(
        wanted, rel=0.2
    )  # of 375 probes: 8 % one way or the other
    assert wanted < 0.75 * alone  # so that the aim is not met by doing nothing
    again, _ = extend(real, 9_000, seed=1)
    assert np.array_equal(vectors, again)


def test_nearest_neighbour_is_another_vector() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    expected = np.sqrt([0.8, 0.4, 0.4])
    assert neighbour_distances(vectors, vectors, among=True) == pytest.approx(expected, rel=1e-3)
    alone = neighbour_distances(vectors[:2], vectors[2:], among=False)
    assert alone == pytest.approx(np.sqrt([2, 0.4]), rel=1e-3)


def documented(count: int) -> str:
    return "".join(
        f'def function_{n}(x):\n    """Document number {n} of many."""\n    return x + {n}\n\n'
        for n in range(100, 100 + count)
    )


def test_queries_are_documentation_of_functions_that_are_left_out(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path, {"a.py": documented(20), "b.py": "def bare(x):\n    return x * 2\n"}
    )
    model = HashingModel()
    build_toy(root, model)
    index = Index(root / FOLDER)
    real, queries = real_vectors(index, model, queries=6, seed=0)
    assert real.shape == (15, model.dimension)
    assert queries.shape == (6, model.dimension)
    own = model.encode_queries([f"Document number {n} of many." for n in range(100, 120)])
    asked = {100 + int(np.argmax(own @ query)) for query in queries}
    assert len(asked) == 6
    held_out = [model.encode_queries([index.text(row)])[0] for row in range(len(index))]
    about = [index.text(row).split("\n")[0] for row in range(len(index))]
    for text, vector in zip(about, held_out, strict=True):
        left_out = text in {f"Document number {n} of many." for n in asked}
        assert (np.abs(real - vector).max(axis=1).min() < 1e-2) != left_out
    with pytest.raises(ValueError, match="holds 20 functions with documentation: 22 are needed"):
        real_vectors(index, model, queries=11, seed=0)


# --- index types ---


def stored(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> Files:
    return index_types._store(vectors, queries, folder)


def test_recall_counts_scores_that_reach_the_tenth() -> None:
    found = np.full((2, 10), 0.5, np.float32)
    found[0, 3:] = -np.inf
    found[1, 9] = 0.4
    assert recall(found, np.array([0.5, 0.5], np.float32)) == pytest.approx((3 + 9) / 20)
    assert recall(found[:1], np.array([0.4, 9], np.float32)) == pytest.approx(0.3)


def test_tenth_score_is_exact() -> None:
    vectors, queries = clumps(500).astype(np.float16), clumps(7, seed=5)
    scores = np.sort(queries @ vectors.astype(np.float32).T, axis=1)
    assert exact_tenth(vectors, queries) == pytest.approx(scores[:, -10], abs=1e-5)


def test_flat_index_is_exact_and_hnsw_nearly(tmp_path: Path) -> None:
    files = stored(tmp_path, clumps(1_500), clumps(30, seed=5))
    assert build("flat", files) == 0
    assert not files.graph.exists()
    built, (exact,) = ask("flat", files, 0.0, (), threads=1)
    assert (exact.setting, exact.recall) == ("exact", 1.0)
    assert exact.single > 0
    assert exact.batched is not None
    assert built.index_bytes == files.vectors.stat().st_size
    if Path("/proc/self/status").exists():
        assert built.memory_mb is not None
        assert built.memory_mb > -50

    seconds = build("hnsw", files)
    assert seconds > 0
    built, (tool, least, most) = ask("hnsw", files, seconds, (10, 200), threads=1)
    assert built.seconds == seconds
    assert built.index_bytes == files.graph.stat().st_size > 4 * 1_500 * 16
    assert (tool.setting, tool.batched) == (TOOL, None)
    assert tool.recall > 0.99
    assert most.recall > 0.98
    assert least.recall <= most.recall
    assert (least.setting, most.setting) == ("efSearch 10", "efSearch 200")


def test_scoring_anew_helps_ivf_pq(tmp_path: Path) -> None:
    files = stored(tmp_path, clumps(1_500), clumps(30, seed=5))
    build("ivfpq", files)
    _, (tool, one, one_rescored, all_, all_rescored) = ask("ivfpq", files, 1.0, (1, 99), threads=1)
    assert [a.setting for a in (one, one_rescored)] == ["nprobe 1", "nprobe 1, 100 re-scored"]
    assert one_rescored.recall > one.recall
    assert all_rescored.recall > all_.recall
    assert all_rescored.recall > one_rescored.recall
    assert tool.recall > 0.9


def test_workers_are_processes_with_so_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert index_types._apart(3, os.getenv, "OMP_NUM_THREADS") == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    assert index_types._apart(1, os.getpid) != os.getpid()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_types, "_apart", lambda threads, function, *rest: function(*rest))


@pytest.mark.usefixtures("in_this_process")
def test_study_makes_vectors_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_types, "SMALLEST", {"hnsw": 700, "ivfpq": 1_200})
    monkeypatch.setattr(index_types, "SETTINGS", {"flat": (), "hnsw": (16,), "ivfpq": (2,)})
    real = clumps(1_300)
    rows, made, fidelity = study(real, clumps(20, seed=5), [600, 800, 2_000], tmp_path, 1, seed=0)
    found = [(row.size, row.kind) for row in rows]
    assert found == [(600, "flat"), (800, "flat"), (800, "hnsw"), *((2_000, k) for k in KINDS)]
    assert [how.scale > 0 for how in made.values()] == [False, False, True]
    assert [row.name for row in fidelity] == ["1,300 real", "as many from 130"]
    assert fidelity[0].distance == pytest.approx(fidelity[1].distance, rel=0.3)
    assert set(fidelity[0].recall) == {"hnsw", "ivfpq"}
    assert study(real, clumps(20, seed=5), [600], tmp_path, 1, seed=0)[2] == []


@pytest.mark.usefixtures("in_this_process")
def test_tables_and_plot_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index_types, "load", lambda settings: HashingModel())
    root = write_tree(tmp_path / "code", {"a.py": documented(700)})
    build_toy(root)
    command = ["--index", str(root / FOLDER), "--queries", "20", "--threads", "1"]
    assert main([*command, "--sizes", "600", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (
        "680 vectors are those of the functions of code, encoded by hashing; 20 queries" in printed
    )
    assert "| 600 | flat | exact | 1.000 |" in printed
    assert printed == (tmp_path / "out" / "index_types.md").read_text()
    written = json.loads((tmp_path / "out" / "index_types.json").read_text())
    assert [row["kind"] for row in written["rows"]] == ["flat"]
    assert written["facts"]["faiss"] == faiss.__version__
    assert (tmp_path / "out" / "index_types.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == []
    assert main([*command, "--queries", "500", "--out", str(tmp_path / "out")]) == 1
    assert "1000 are needed" in capsys.readouterr().err
    assert main(["--index", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "no index in" in capsys.readouterr().err


def test_plot_has_a_panel_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = Built(1.0, 100, None, None)
    asked = [Asked(TOOL, 0.9, 50.0, None), Asked("nprobe 4", 0.5, 99.0, 1.0)]
    asked.append(Asked("nprobe 4, 100 re-scored", 0.8, 80.0, 1.0))
    rows = [
        index_types.Row(size, kind, built, asked[:1] if kind == "flat" else asked)
        for size in (10, 100)
        for kind in ("flat", "ivfpq")
    ]
    figures = []
    monkeypatch.setattr(index_types.plt, "close", figures.append)
    plot(tmp_path / "x.png", rows)
    axes = figures[0].axes
    assert [panel.get_title() for panel in axes] == ["10 vectors", "100 vectors"]
    labels = [line.get_label() for line in axes[0].get_lines()]
    assert labels == ["flat", "IVF-PQ", "IVF-PQ, as the tool asks", "IVF-PQ, re-scored"]
    assert list(axes[0].get_lines()[3].get_xdata()) == [0.8]
    assert "unknown" in index_types._built_table(rows)


# --- precision ---


def test_precisions_are_compared_query_by_query() -> None:
    codes = [f"def step_{word}(): return {word}" for word in ("walk", "run", "jump", "swim")]
    queries = ["how to run", "jump", "swim or walk"]
    answers = torch.tensor([1, 2, 3])
    exact = precision.ranked(HashingModel(), queries, codes, answers)
    assert exact.both[:2].tolist() == [100, 100]
    assert exact.both[2] == 50  # two codes have one word of it each: ties count against the model
    rounded = precision.Ranked(exact.fast - 1.0, exact.both - [3.0, 0.0, 0.0], 1.0)
    printed = precision.report({"float32": exact, "bfloat16": rounded}, "facts")
    assert printed.startswith("facts\n")
    assert f"| float32 | {exact.fast.mean():.2f} | 83.33 |" in printed
    assert "bfloat16 - float32: first stage -1.00 points (-1.00 to -1.00), cascade -1.00" in printed
    assert "cascade - first stage, float32" in printed


def test_no_second_stage_no_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = HashingModel()
    model.can_rerank = False  # type: ignore[misc]
    monkeypatch.setattr(precision, "load_search_model", lambda *_, **__: model)
    assert precision.main(["--model", "first.ckpt", "--out", str(tmp_path)]) == 1
    assert "first.ckpt has no second stage" in capsys.readouterr().err


def test_a_distance_out_of_reach_is_told_and_loses_nothing() -> None:
    """Vectors with a twin each have short displacements: no scale moves anything far."""
    noise = np.random.default_rng(0).standard_normal((400, 16)) / 1_000
    real = (np.repeat(clumps(200), 2, axis=0) + noise).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    vectors, made = extend(real, 500, seed=1)
    assert len(vectors) == 500
    assert made.scale in (0.02, 3.0)
    assert made.distance < made.aim
