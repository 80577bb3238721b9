"""An answer is never of code that is gone: an index follows its folder before it is asked."""

import os
from pathlib import Path

import pytest

from methods.cascode.search import indexing, refreshing
from methods.cascode.search.index import Index
from methods.cascode.search.models import Decision
from methods.cascode.search.query import Request, Searcher
from methods.cascode.search.refreshing import Fresh, changed_files, refresh
from methods.cascode.search.store import FOLDER, locked
from tests.unit.cascode_search_toy import FILES, HashingModel, build, content, write_tree

NAMES = "lorem", "ipsum", "dolor", "amet", "elit", "sed", "tempor", "magna"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_tree((tmp_path / "code").resolve())
    build(root)
    return root


def fresh(root: Path, seconds: float = 60.0, model: HashingModel | None = None) -> Fresh:
    return refresh(Index(root / FOLDER), lambda: model or HashingModel(), seconds)


def found(now: Fresh, query: str) -> set[str]:
    searcher = Searcher(now.index, HashingModel(), Decision(False, ""), now.changed, now.notes)
    return {result.path for result in searcher.search(Request(query)).results}


def functions(*names: str) -> str:
    return "".join(f"def {name}(value):\n    return value\n\n\n" for name in names)


def test_nothing_to_do(root):
    before = content(root / FOLDER)
    index = Index(root / FOLDER)
    assert refresh(index, lambda: pytest.fail("no model is needed")) == Fresh(index)
    os.utime(root / "config.py")
    assert changed_files(index) == {"config.py"}
    assert not fresh(root).changed
    assert content(root / FOLDER) == before, "the content is the same"
    assert not changed_files(Index(root / FOLDER)), "and is not looked at again"


def test_files_come_change_and_go(root):
    (root / "net/client.py").unlink()
    write_tree(root, {"new.py": functions("brand_new"), "config.py": functions("another")})
    model = HashingModel()
    now = fresh(root, model=model)
    assert (now.changed, now.notes) == (frozenset(), ())
    assert found(now, "server") == {"config.py", "new.py", "net/copy_of_client.py"}
    assert len(model.encoded) == 4, "description and code of the two new ones"
    assert not Index(root / FOLDER).place(0).name.startswith("read")
    build(root)
    assert not changed_files(Index(root / FOLDER))


def test_what_takes_longer_is_said_and_not_shown(root):
    """The old code of a file that has changed is hidden, too, until `index` has run."""
    write_tree(root, {"config.py": functions("another"), "new.py": functions("brand_new")})
    (root / "net/client.py").unlink()
    now = fresh(root, seconds=-1.0)
    assert now.changed == {"config.py", "new.py"}
    assert now.notes == (f"2 changed files not searched yet: run `tenfold-search index {root}`",)
    assert found(now, "settings") == {"net/copy_of_client.py"}
    assert changed_files(now.index) == {"config.py", "new.py"}, "they are still to be done"
    assert build(root).encoded == 2
    assert found(fresh(root), "settings") == {"config.py", "new.py", "net/copy_of_client.py"}


def test_an_end_between_two_batches(root, monkeypatch):
    """A file is taken whole or not at all."""
    monkeypatch.setattr(indexing, "BATCH", 16)  # one text at a time
    write_tree(root, {"many.py": functions(*(f"name_{letter}" for letter in "abcdefgh"))})
    clock = iter(range(1000))
    monkeypatch.setattr(indexing.time, "monotonic", lambda: next(clock))
    now = fresh(root, seconds=6.0)
    assert now.changed == {"many.py"}
    assert "many.py" not in found(now, "name")
    monkeypatch.undo()
    assert "many.py" in found(fresh(root), "name")


def test_another_run_goes_on(root):
    """Its index is not written to; what has changed is hidden."""
    (root / "config.py").unlink()
    with locked(root / FOLDER):
        if (pid := os.fork()) == 0:
            now = fresh(root)
            said = "another `tenfold-search index` is writing" in now.notes[0]
            os._exit(0 if said and now.changed == {"config.py"} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_stopped_run_keeps_what_it_has_done(root, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH", 4)
    write_tree(root, {f"{name}.py": functions(f"of_{name}") for name in NAMES})

    class Stopped(HashingModel):
        def encode_codes(self, texts, progress=None):
            if len(self.encoded) == 8:
                raise KeyboardInterrupt
            return super().encode_codes(texts, progress)

    with pytest.raises(KeyboardInterrupt):
        build(root, Stopped())
    now = fresh(root)
    assert len(now.changed) == len(NAMES)
    assert "a run was stopped" in now.notes[0]
    model = HashingModel()
    build(root, model)
    assert len(model.encoded) == 8


def test_an_index_of_another_machine_stays_as_it_is(root, monkeypatch):
    write_tree(root, {"new.py": functions("brand_new")})
    before = content(root / FOLDER)
    monkeypatch.setenv("XDG_STATE_HOME", str(root.parent / "another state"))
    assert not Index(root / FOLDER).own
    assert not fresh(root).changed
    assert content(root / FOLDER) == before


def test_only_what_is_indexed_is_compared(root):
    from methods.cascode.search.walking import Scope

    build(root, scope=Scope(("net",), exclude=("*copy*",)))
    write_tree(root, {"new.py": "x = 1\n", "net/copy2.py": "x = 1\n"})
    assert not changed_files(Index(root / FOLDER))
    write_tree(root, {"net/new.py": functions("brand_new")})
    assert changed_files(Index(root / FOLDER)) == {"net/new.py"}
    assert found(fresh(root), "server") == {"net/client.py", "net/new.py"}


def test_a_thousand_files_are_compared_at_once(tmp_path):
    root = write_tree(
        tmp_path.resolve(), {f"a{n}/b{n % 9}.py": FILES["empty.py"] for n in range(1000)}
    )
    write_tree(root, FILES)
    build(root)
    start = os.times()
    assert not changed_files(Index(root / FOLDER))
    spent = os.times()
    assert spent.user + spent.system - start.user - start.system < 0.5
    assert refreshing.SECONDS <= 1
