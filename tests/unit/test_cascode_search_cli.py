"""The commands as typed: what they print, their exit status, their messages."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from methods.cascode.search import cli
from methods.cascode.search.cli import main
from methods.cascode.search.models import Settings
from methods.cascode.search.store import DATABASE, FOLDER
from tests.unit.cascode_search_toy import FILES, HashingModel, write_tree


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What models were asked for; every one is the toy."""
    calls: list[Settings] = []

    def load(settings: Settings) -> HashingModel:
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
    capsys.readouterr()
    assert main(["index", str(root), "--precision", "float32"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "files of code 7" in out
    assert "indexed 6 2 new or changed" in out
    assert "vendored 1 node_modules/a.js" in out
    assert "functions 5 4 different ones" in out
    assert "encoded now 1" in out
    assert "note: not UTF-8, read as Latin-1: latin.py" in out
    assert loaded == [Settings(precision="float32")]


def test_query_prints_places_and_code(root, capsys):
    capsys.readouterr()
    words = ["connect", "to", "a", "server"]
    assert main(["query", *words, "--dir", str(root / "net"), "--top", "1"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("net/client.py:1  open_connection  python  score ")
    assert lines[1] == "     1  def open_connection(host, port):"
    assert lines[4] == "    also net/copy_of_client.py:4"
    assert lines[-2].startswith("first stage only: no gain of re-ranking was measured (its package")


def test_query_for_programs(root, capsys):
    capsys.readouterr()
    options = ["--json", "--rerank", "always", "--k", "1"]
    assert main(["query", "connect to a server", "--dir", str(root), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["query"] == "connect to a server"
    assert answer["model"] == "hashing"
    best = answer["results"][0]
    assert (best["path"], best["start_line"], best["judged"]) == ("net/client.py", 1, 2.0)
    assert best["also"] == [["net/copy_of_client.py", 4]]
    assert best["lines"][0] == [1, "def open_connection(host, port):"]
    assert answer["ranking"].startswith("re-ranked by hashing")


def test_the_index_is_found_upwards(root, monkeypatch):
    monkeypatch.chdir(root / "net")
    assert main(["query", "server"]) == 0
    monkeypatch.chdir(root.parent)
    assert main(["query", "server"]) == 1
    assert main(["query", "server", "--index", str(root / FOLDER)]) == 0


def test_no_index(tmp_path, capsys):
    for command in (["query", "x"], ["serve"]):
        assert main([*command, "--dir", str(tmp_path)]) == 1
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
    assert main(["query", "x", "--dir", str(root), "--model", "package:mine"]) == 1
    assert "built by hashing2 (fingerprint fingerprint2), but hashing" in capsys.readouterr().err


def test_indexing_again_keeps_the_precision(root, loaded):
    assert main(["index", str(root)]) == 0
    assert [settings.precision for settings in loaded] == ["float32"]


WRONG = ["", "find x", "query", "query x --top 0", "query x --k -1", "query x --lexical 2"]
WRONG += ["query x --lexical nan", "query x --language cobol", "query x --rerank maybe"]
WRONG += ["index . --text all", "index . --max-bytes much"]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments.split())
    assert error.value.code == 2


def test_what_cannot_be_done_is_said_in_one_line(root, loaded, capsys):
    assert main(["index", str(root / "none")]) == 1
    assert "none is no folder" in capsys.readouterr().err
    assert loaded == [], "before a model is loaded"
    for words in ([""], [" ", "\t"]):
        assert main(["query", *words, "--dir", str(root)]) == 1
        assert "the query is empty" in capsys.readouterr().err
    assert main(["query", "x", "--dir", str(root), "--index", "/\x1b[2J"]) == 1
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
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert (root / "said").read_text() == ""


def test_the_page_takes_the_newest_index(root, capsys):
    def opened() -> cli.Searcher:
        arguments = cli._parser().parse_args(["serve", "--dir", str(root)])
        return cli._searcher(arguments, root / FOLDER)

    newest = cli._Newest(opened)
    first = newest()
    assert newest() is first
    write_tree(root, {"added.py": "def added():\n    return 1\n"})
    assert main(["index", str(root)]) == 0
    assert len(newest().index) == len(first.index) + 1
    assert main(["index", str(root), "--model", "other"]) == 0
    assert newest().model.name == "hashing2"
    second = newest()
    (root / FOLDER / DATABASE).write_text("damaged")
    assert newest() is second
    assert "the old index stays in use" in capsys.readouterr().err


def test_serve_says_where(root, monkeypatch, capsys):
    def interrupt(server: cli.PageServer) -> None:
        assert server.server_port != 0
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.PageServer, "serve_forever", interrupt)
    capsys.readouterr()
    assert main(["serve", "--dir", str(root), "--port", "0"]) == 130
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("methods.cascode.search", run_name="__main__")
    assert "usage: tenfold-search" in capsys.readouterr().out
