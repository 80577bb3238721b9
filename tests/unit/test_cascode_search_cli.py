"""The commands as typed: what they print, their exit status, their messages."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from methods.cascode.search import cli, indexing
from methods.cascode.search.cli import main
from methods.cascode.search.index import Index
from methods.cascode.search.models import Settings
from methods.cascode.search.page import PageServer
from methods.cascode.search.store import DATABASE, FOLDER
from tests.unit.cascode_search_toy import FILES, HashingModel, write_tree


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What models were asked for; every one is the toy."""
    calls: list[Settings] = []

    def load(settings: Settings, light: bool = False) -> HashingModel:
        calls.append(settings)
        return HashingModel("2" if "other" in settings.source else "")

    monkeypatch.setattr(cli, "load", load)
    return calls


@pytest.fixture
def root(tmp_path: Path, loaded: list[Settings]) -> Path:
    root = write_tree((tmp_path / "code").resolve(), FILES)
    assert main(["index", str(root)]) == 0
    loaded.clear()
    return root


def test_index_prints_a_table(root, capsys, loaded):
    write_tree(root, {"node_modules/a.js": "x", "added.py": "def added():\n    return 1\n"})
    (root / "latin.py").write_bytes(b"x = '\xe9'\n")
    write_tree(root, {"a.vue": "<template>", "b/c.Vue": "<template>"})
    capsys.readouterr()
    assert main(["index", str(root), "--precision", "float32"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "files 7" in out
    assert "indexed 6 2 new or changed" in out
    assert "vendored 1 node_modules" in out
    assert "functions 5 classes 1 constants 1" in out
    assert "encoded now 2 in float32" in out
    assert "not read 2 2 .vue" in out
    assert "note: not UTF-8, read as Latin-1: latin.py" in out
    assert loaded == [Settings(precision="float32")]


def test_query_prints_places_and_code(root, capsys):
    capsys.readouterr()
    words = ["connect", "to", "a", "server"]
    assert main(["query", *words, "--dir", str(root / "net"), "--top", "1"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("net/copy_of_client.py:4  open_connection  python function  score ")
    assert lines[1] == "     4  def open_connection(host, port):"
    assert lines[4] == "    also net/client.py:1"
    assert lines[5:] == ["", ""], "no word on re-ranking"


def test_query_for_programs(root, capsys):
    capsys.readouterr()
    options = ["--json", "--rerank", "always", "--k", "1"]
    assert main(["query", "connect to a server", "--dir", str(root), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["query"] == "connect to a server"
    assert answer["model"] == "hashing"
    best = answer["results"][0]
    assert (best["path"], best["start_line"], best["judged"]) == ("net/copy_of_client.py", 4, 2.0)
    assert best["also"] == [["net/client.py", 1]]
    assert best["lines"][0] == [4, "def open_connection(host, port):"]
    assert answer["ranking"].startswith("re-ranked by hashing")


def test_the_index_is_found_upwards(root, monkeypatch):
    monkeypatch.chdir(root / "net")
    assert main(["query", "server"]) == 0
    monkeypatch.chdir(root.parent)
    assert main(["query", "server"]) == 2
    assert main(["query", "server", "--index", str(root / FOLDER)]) == 0


def test_no_index(tmp_path, capsys):
    for command in (["query", "x"], ["serve"]):
        assert main([*command, "--dir", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("tenfold-search: no index in ")
        assert "run `tenfold-search index DIR`" in message


def test_queries_use_the_model_of_the_index(tmp_path, loaded, capsys):
    root = write_tree(tmp_path.resolve() / "code")
    options = ["--model", "models/other", "--pooling", "cls", "--unnormalized"]
    assert main(["index", str(root), *options]) == 0
    assert main(["query", "x", "--dir", str(root)]) == 0
    source = str(Path("models/other").resolve())
    assert loaded[0] == Settings(source, "auto", "cls", False)
    assert loaded[1] == Settings(source, "float32", "cls", False), "in the precision it measured"
    assert main(["query", "x", "--dir", str(root), "--model", "package:mine"]) == 2
    assert "built by hashing2 (fingerprint fingerprint2), but hashing" in capsys.readouterr().err


def test_much_is_encoded_by_torch(root, monkeypatch, loaded):
    """In a precision that is measured, which a run that was stopped goes on with."""
    monkeypatch.setattr(cli, "find_spec", lambda name: name)
    monkeypatch.setattr(indexing, "FEW", 1)
    monkeypatch.setattr(HashingModel, "precision", "bfloat16")
    write_tree(root, {"added.py": "def added():\n    return 1\n"})

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "parts_of", stopped)
        assert main(["index", str(root)]) == 130
    assert [settings.precision for settings in loaded] == ["auto"] * 2
    assert main(["index", str(root)]) == 0
    assert [settings.precision for settings in loaded] == ["auto"] * 3 + ["bfloat16"]


WRONG = ["", "find x", "query", "query x --top 0", "query x --k -1", "query x --lexical 2"]
WRONG += ["query x --lexical nan", "query x --language cobol", "query x --rerank maybe"]
WRONG += ["index . --text all", "index . --max-bytes much"]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments.split())
    assert error.value.code == 2


def test_what_cannot_be_done_is_said_in_one_line(root, loaded, capsys):
    assert main(["index", str(root / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err
    assert loaded == [], "before a model is loaded"
    for words in ([""], [" ", "\t"]):
        assert main(["query", *words, "--dir", str(root)]) == 2
        assert "the query is empty" in capsys.readouterr().err
    assert main(["query", "x", "--dir", str(root), "--index", "/\x1b[2J"]) == 2
    assert "/\\x1b[2J" in capsys.readouterr().err


def test_interrupted(root, monkeypatch, capsys):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_index", interrupt)
    assert main(["index", str(root)]) == 130
    assert "goes on where it was" in capsys.readouterr().err


def test_a_reader_that_goes_away(root):
    """As `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    if (pid := os.fork()) == 0:
        with open(root / "said", "w") as sys.stderr, open(writing, "w") as sys.stdout:
            status = main(["query", "settings", "--json", "--dir", str(root)])
        os._exit(status)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert (root / "said").read_text() == ""


def test_the_page_takes_the_newest_index(root, capsys, monkeypatch):
    monkeypatch.setattr(cli, "CHECKED", 0)
    newest = cli.Newest(cli._parser().parse_args(["serve", "--dir", str(root)]))
    first = newest()
    assert newest() is first
    write_tree(root, {"added.py": "def added():\n    return 1\n"})
    assert len(newest().index) == len(first.index) + 1, "it looks into the folder itself"
    write_tree(root, {"more.py": "def more():\n    return 1\n"})
    assert main(["index", str(root)]) == 0
    assert len(newest().index) == len(first.index) + 2
    assert main(["index", str(root), "--model", "other"]) == 0
    assert newest().model.name == "hashing2"
    second = newest()
    (root / FOLDER / DATABASE).write_text("damaged")
    assert newest() is second
    assert "the old index stays in use" in capsys.readouterr().err


def test_serve_says_where(root, monkeypatch, capsys):
    def interrupt(server: PageServer) -> None:
        assert server.server_port != 0
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", interrupt)
    capsys.readouterr()
    assert main(["serve", "--dir", str(root), "--port", "0"]) == 130
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("methods.cascode.search", run_name="__main__")
    assert "usage: tenfold-search" in capsys.readouterr().out


# --- what programs and pipes ask for ---


def test_a_line_a_result(root, capsys):
    capsys.readouterr()
    asked = ["query", "connect", "to", "a", "server", "--dir", str(root)]
    assert main([*asked, "--compact", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("net/copy_of_client.py:4 0.")
    assert lines[0].endswith(" open_connection")
    assert len(lines) == 2
    assert main([*asked, "--jsonl", "--top", "2"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert results[0]["name"] == "open_connection"
    assert results[0].keys() >= {"path", "start_line", "end_line", "kind", "score", "lines"}


def test_nothing_is_found(root, capsys):
    for form in ([], ["--compact"], ["--jsonl"], ["--json"]):
        assert main(["query", "x", "--dir", str(root), "--language", "go", *form]) == 1
        said = capsys.readouterr()
        assert "nothing that was indexed has that kind" in said.out + said.err


def test_a_folder_below_limits_the_search(root, capsys, monkeypatch):
    def paths(*options: str) -> set[str]:
        capsys.readouterr()
        assert main(["query", "settings", "--jsonl", *options]) == 0
        return {json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()}

    assert paths("--dir", str(root / "net")) == {"net/client.py"}
    monkeypatch.chdir(root / "net")
    assert paths() == {"config.py", "net/client.py"}, "where one stands is no limit"


def test_an_index_of_several_folders(tmp_path, loaded, capsys):
    for name in ("one", "two", "three"):
        write_tree(tmp_path / name, {"a.py": f"def of_{name}():\n    return 1\n"})
        write_tree(tmp_path / name, {"skip/b.py": "def skipped():\n    return 1\n", "c.js": "x=1"})
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    options = ["--include", "*.py", "--exclude", "skip/"]
    assert main(["index", one, two, *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "excluded 2 one/skip, two/skip" in said
    assert "not included 2 one/c.js, two/c.js" in said
    index = Index(tmp_path.resolve() / "one" / FOLDER)
    assert [file.path for file in index.files] == ["one/a.py", "two/a.py"]
    (tmp_path / "two/d.py").write_text("def added():\n    return 1\n")
    assert main(["query", "added", "--dir", one, "--index", str(index.home), "--compact"]) == 0
    assert main(["query", "added", "--index", str(index.home), "--compact"]) == 0
    assert "two/d.py:1" in capsys.readouterr().out


def test_stale_answers_are_asked_for(root, capsys):
    (root / "config.py").write_text("def added():\n    return 1\n")
    asked = ["query", "read_config", "--dir", str(root), "--compact", "--top", "1"]
    assert main([*asked, "--no-refresh"]) == 0
    assert "read_config" in capsys.readouterr().out
    assert main(asked) == 0
    assert "read_config" not in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out.startswith("tenfold-search 0.")


def test_a_log_says_how_far_it_is(monkeypatch, capsys):
    """Where no terminal shows bars."""
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli.Bars() as bars:
        for done in range(4):
            now[0] += 3
            bars.show("encoding", 1000 * done, 4000)
    said = capsys.readouterr().err
    assert said == "encoding: 1,000 of 4,000\nencoding: 3,000 of 4,000\n"
