"""The search benchmark: labels, grading, the systems, the peer's process."""

import json
import math
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search import __main__ as benchmark
from benchmarks.search import systems
from benchmarks.search.__main__ import OURS, THEIRS, Row, card, evaluate, interval
from benchmarks.search.questions import (
    Label,
    Question,
    _definitions,
    copy_library,
    grades,
    load_questions,
    ndcg,
)
from benchmarks.search.systems import Measured, Task, run_ours, run_semble
from benchmarks.speed import peer_environment
from benchmarks.speed.protocol import SpeedError
from methods.cascode.search.index import Index
from tests.unit.cascode_search_toy import HashingModel, write_tree

LIBRARY = Path(sysconfig.get_path("stdlib"))
A = Label("a.py", "f", 2, ((1, 10),))
B = Label("a.py", "g", 1, ((12, 20), (40, 50)))
C = Label("b.py", "C.f", 1, ((5, 5),))
QUESTION = Question("how?", (A, B, C), True)
IDEAL = 3 + 1 / math.log2(3) + 1 / 2


@pytest.mark.slow
def test_every_labelled_function_exists():
    questions, absent = load_questions(LIBRARY)
    assert len(questions) >= 80, absent
    assert sum(question.card for question in questions) == 10
    if sys.version_info[:2] == (3, 11):  # which they were written for
        assert absent == []


def ask_about(tmp_path: Path, *entries: dict[str, object]) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries))
    return path


def test_labels_that_a_python_lacks_are_left_out(tmp_path):
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
def test_bad_questions_are_refused(tmp_path, entries, message):
    write_tree(tmp_path, {"new.py": "def f():\n    pass\n"})
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path, ask_about(tmp_path, *entries))


def test_definitions_are_found_under_conditions_and_not_in_functions(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "if a:\n    def f(): pass\nelse:\n    def f():\n        def inner(): pass\n"
        "class A:\n    try:\n        async def g(self): pass\n    except E:\n        g = None\n"
    )
    assert _definitions(path) == {"f": [(2, 2), (4, 5)], "A.g": [(8, 8)]}
    assert _definitions(tmp_path / "absent.py") == {}


def test_library_is_copied_once_and_without_packages(tmp_path):
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


def test_ndcg_by_hand():
    hits = [[("z.py", 1, 99)], [("a.py", 30, 41)], [("a.py", 3, 4)]]
    ranking = grades(hits, QUESTION)
    assert ranking == [0, 1, 2]
    gain = 1 / math.log2(3) + 3 / 2
    assert ndcg(ranking, QUESTION) == pytest.approx(gain / IDEAL)
    assert ndcg(ranking, QUESTION, depth=2) == pytest.approx(
        1 / math.log2(3) / (3 + 1 / math.log2(3))
    )
    assert ndcg([], QUESTION) == 0


def test_hits_of_several_functions_or_several_of_one():
    # Chunks of one function count once and take one position.
    hits = [[("a.py", 1, 5)], [("a.py", 6, 11)], [("b.py", 1, 5)]]
    assert grades(hits, QUESTION) == [2, 1]
    assert grades([*hits, [("a.py", 45, 60)], [("a.py", 2, 60)]], QUESTION) == [2, 1, 1]
    # A chunk over several shows them all; one counts for each place it stands in.
    assert grades([[("a.py", 9, 13)], [("a.py", 1, 8)], [("c.py", 1, 8)]], QUESTION) == [2, 1, 0]
    assert grades([[("z.py", 1, 2), ("b.py", 5, 5)]], QUESTION) == [1]
    assert grades([[("z.py", 1, 2), ("b.py", 6, 6)]], QUESTION) == [0]
    assert grades([[("a.py", 11, 11)]], QUESTION) == [0]


SPANS = st.tuples(st.sampled_from("abz"), st.integers(1, 60), st.integers(0, 30)).map(
    lambda drawn: (f"{drawn[0]}.py", drawn[1], drawn[1] + drawn[2])
)


@given(st.lists(st.lists(SPANS, min_size=1, max_size=2), max_size=15))
def test_ndcg_is_a_share_of_the_ideal(hits):
    ranking = grades(hits, QUESTION)
    assert 0 <= ndcg(ranking, QUESTION) <= 1 + 1e-12
    assert sum(grade > 0 for grade in ranking) <= len(QUESTION.labels)
    whole = [[("a.py", 1, 10)], [("a.py", 12, 20)], [("b.py", 5, 5)]]
    assert ndcg(grades([*whole, *hits], QUESTION), QUESTION) == pytest.approx(1)


def test_interval_of_the_mean():
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


def test_table_difference_and_card():
    right, wrong, asked = [("a.py", 1, 2)], [("q.py", 1, 2)], [("b.py", 5, 5)]
    rows = [
        of(THEIRS, [[right], [wrong, asked]], 0.002),
        of(OURS, [[wrong], [asked]], 0.02),
    ]
    assert rows[1].ndcg == pytest.approx([0, 1])
    assert not of(OURS, [[[("a.py", 12, 13)], right], [wrong]], 0.02).first.any()
    lines = benchmark.system_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    quality = "0.000 | 1.000 (1.000 to 1.000)"
    assert lines[3].startswith(f"| {OURS} | {quality} | 0.00 | 4.0 | 70 | 2.0 | 20.0, ")
    difference = benchmark.difference(rows)
    gain = 1 - 1 / math.log2(3)
    assert difference.startswith(f"{OURS} - {THEIRS}: NDCG@10 +{gain:.3f}")
    assert difference.endswith("warm query 10x the time")
    assert card(rows, [QUESTION, Question("why?", (C,), False)]).splitlines()[2:] == [
        "| how? | `x.py:1` | right: `x.py:1` |"
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


def test_peer_is_run_in_a_process_of_its_own(fake_semble, tmp_path):
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
    with pytest.raises(SpeedError, match=r"Peer failed \(log: .*log\):\n.*it went boom"):
        run_semble(Task(tmp_path / "code", ["boom"], 3, 2), *arguments)


def test_ours_is_run_by_the_tool(tmp_path, monkeypatch):
    pytest.importorskip("bm25s")
    model = HashingModel()
    monkeypatch.setattr(systems, "load", lambda settings, light=False: model)
    root, home = write_tree(tmp_path / "code"), tmp_path / "index"
    task = Task(root, ["connect to a server", "write the settings"], top=2, repeats=3)
    found = run_ours(task, home, "hashing")
    assert [m.name for m in found] == list(systems.OUR_VARIANTS["both"])
    for measured in found:
        assert {path for path, *_ in measured.hits[0][0]} == {
            "net/client.py",
            "net/copy_of_client.py",
        }
        assert measured.titles[1] == "config.py:14 Config.save"
        assert [len(hits) for hits in measured.hits] == [2, 2]
        assert len(measured.seconds) == 6
        assert (measured.items, measured.files) == (5, 4)
        assert measured.index_bytes == Index(home).bytes
    model.encoded.clear()
    run_ours(task, home, "hashing")
    assert len(model.encoded) == 9  # the index is built anew


def test_comparison_from_the_command_line(fake_semble, tmp_path, monkeypatch, capsys):
    pytest.importorskip("bm25s")
    monkeypatch.setattr(systems, "load", lambda settings, light=False: HashingModel())
    monkeypatch.setattr(peer_environment, "ensure", lambda folder, peer: Path(sys.executable))
    monkeypatch.setattr(systems, "cold", lambda arguments, repeats=5: (0.5, 120.0))
    out = tmp_path / "out"
    write_tree(out, {"static-model/model": ""})
    model = str(tmp_path / "model")
    command = ["--out", str(out), "--model", model, "--repeats", "1", "--only", "shlex"]
    assert benchmark.main(command) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "search.md").read_text()
    for name in (THEIRS, OURS):
        assert f"| {name} | " in printed
    assert "2 plain questions" in printed
    assert "| cold query | 0.50 | 120 |" in printed
    assert benchmark.main(["--out", str(out), "--only", "this"]) == 1
    assert "answers no question" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("rg") is None, reason="needs ripgrep")
def test_ripgrep_ranks_lines_by_words(tmp_path):
    write_tree(
        tmp_path,
        {
            "a.py": "# open\n# close\n# open and close it\n",
            "b.py": "x = 'open the door'\n",
            "c.py": "# Close or OPEN\n# door\n",
            "d.md": "open close door\n",
        },
    )
    found = systems.run_ripgrep(Task(tmp_path, ["open or close a door"], 3, 1))
    assert [hit[0] for hit in found.hits[0]] == [("c.py", 1, 1), ("a.py", 3, 3), ("b.py", 1, 1)]
    assert found.titles == ["c.py:1"]


def test_a_fresh_process_is_measured():
    seconds, megabytes = systems.cold(["--version"], repeats=1)
    assert 0 < seconds < 30
    assert 5 < megabytes < 150, "without what this process holds"
    with pytest.raises(ValueError, match="`tenfold-search query x --index /none` failed"):
        systems.cold(["query", "x", "--index", "/none"], repeats=1)


def test_the_version_before_is_compared_only_with_its_like(tmp_path, monkeypatch):
    found = json.loads(benchmark.BEFORE.read_text())
    row = of(OURS, [[[("a.py", 1, 2)]], [[("b.py", 5, 5)]]], 0.02)
    questions = [QUESTION, Question("why?", (C,), False)]

    def before(python: str, **ndcg: float) -> str:
        path = tmp_path / "before.json"
        path.write_text(json.dumps({"version": "abc", "python": python, "ndcg": ndcg}))
        monkeypatch.setattr(benchmark, "BEFORE", path)
        return benchmark.before(row, questions)

    here, asked = platform.python_version(), {"how?": 0.9, "why?": 0.25}
    assert before("2.7", **asked) == "The version before was asked of Python 2.7: not compared."
    assert "other questions: not compared" in before(here, **{"how?": 0.9})
    assert before(here, **asked) == (
        f"{OURS} - the version before (abc, 0.250): NDCG@10 +0.750 (+0.750 to +0.750)"
    )
    asked = json.loads(systems.ROOT.joinpath("benchmarks/search/questions.json").read_text())
    assert {entry["question"] for entry in asked} >= found["ndcg"].keys()
