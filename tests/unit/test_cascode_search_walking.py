"""Which files are read: links, other people's code, binaries, sizes, encodings, races."""

import os
from pathlib import Path

import pytest

from methods.cascode.search import walking
from methods.cascode.search.walking import OTHER, Scope, SkippedError, decode, read_bytes, walk
from tests.unit.cascode_search_toy import write_tree

CODE = "def f():\n    return 1\n"


def found(root: Path) -> dict[str, str | None]:
    return {path: why for path, why, _ in walk(root, root / "index") if why != OTHER}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return (tmp_path / "root").resolve()


def reason(root: Path, path: str, limit: int = 1000) -> str:
    with pytest.raises(SkippedError) as error:
        decode(read_bytes(root, path, limit))
    return str(error.value)


def test_finds_code_by_suffix(root):
    write_tree(root, {"a.py": CODE, "b/c.GO": CODE, "b/read.me": "no code", "Makefile": "all:"})
    reasons = [why for _, why, _ in walk(root, root / "index")]
    assert reasons.count(OTHER) == 2
    assert found(root) == {"a.py": None, "b/c.GO": None}
    (root / "a.py").unlink()
    assert reason(root, "a.py") == "vanished"


def test_counts_what_it_passes_over(root, tmp_path):
    names = ["node_modules/x/y/a.js", "Vendor/b.py", "third_party/c.php", ".git/hooks/d.py"]
    names += ["env/pyvenv.cfg", "env/lib/e.py", "lib/f.min.js", "index/g.py", "src/vendors.py"]
    write_tree(root, dict.fromkeys(names, CODE))
    assert found(root) == {
        "node_modules": "vendored",
        "Vendor": "vendored",
        "third_party": "vendored",
        "env": "vendored",
        ".git": "hidden",
        "lib/f.min.js": "minified",
        "src/vendors.py": None,
    }
    # The root itself may have any name.
    root = write_tree(tmp_path.resolve() / "node_modules", {"a.js": CODE, "pyvenv.cfg": ""})
    assert found(root) == {"a.js": None, "pyvenv.cfg": None}


def test_rules_of_git_and_of_the_tool(root):
    """A deeper file has the last word, and ours after git's; rules too costly to match are none."""
    names = ["a.py", "gen/b.py", "gen/keep.py", "src/a.py", "src/gen.py", "build/c.py", "x/b.py"]
    write_tree(root, dict.fromkeys(names, CODE))
    write_tree(
        root, {".gitignore": "build/\n/gen/*\n!keep.py\n[\n\\\n", "src/.gitignore": "gen.py"}
    )
    write_tree(root, {"x/.tenfoldignore": "b.py\n", ".tenfoldignore": "*a*.*p*y*\n"})
    assert found(root) == {
        **dict.fromkeys(["a.py", "gen/keep.py", "src/a.py"]),
        **dict.fromkeys(["gen/b.py", "src/gen.py", "build", "x/b.py"], "ignored"),
    }
    (root / "x/.tenfoldignore").unlink()
    (root / "x/.tenfoldignore").symlink_to(root / ".gitignore")
    assert found(root)["x/b.py"] is None


def test_scope(root):
    names = ["a/b.py", "a/c.js", "d/e.py", "d/tests/f.py", "g.py"]
    write_tree(root, dict.fromkeys(names, CODE))

    def wanted(scope: Scope) -> dict[str, str | None]:
        return {path: reason for path, reason, _ in walk(root, root / "index", scope)}

    assert wanted(Scope(("a", "d/tests"))) == dict.fromkeys(["a/b.py", "a/c.js", "d/tests/f.py"])
    some = wanted(Scope(include=("*.py", "!g.py"), exclude=("tests/",)))
    assert some == {
        **{"a/b.py": None, "a/c.js": "not included", "d/e.py": None},
        **{"d/tests": "excluded", "g.py": "not included"},
    }


def test_stamps_tell_what_has_changed(root):
    write_tree(root, {"a.py": CODE})
    (before,) = walk(root, root / "index")
    assert [*walk(root, root / "index")] == [before]
    times = os.stat(root / "a.py")
    (root / "a.py").write_text(CODE.upper())
    os.utime(root / "a.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    (after,) = walk(root, root / "index")
    assert after.stamp != before.stamp, "of equal size and time"


def test_follows_no_link(root):
    outside = write_tree(root.parent / "outside", {"secret.py": CODE})
    write_tree(root, {"a.py": CODE})
    (root / "file.py").symlink_to(outside / "secret.py")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "broken.py").symlink_to(root / "nothing.py")
    (root / "note.txt").symlink_to(outside / "secret.py")
    links = {"file.py", "folder", "loop", "broken.py"}
    assert found(root) == {"a.py": None} | dict.fromkeys(links, "symbolic link")
    assert reason(root, "file.py") == "symbolic link"
    # A folder may become one after it was walked through.
    write_tree(root, {"later/a.py": CODE})
    assert read_bytes(root, "later/a.py", 1000)
    (root / "later").rename(root.parent / "moved")
    (root / "later").symlink_to(root.parent / "moved")
    assert reason(root, "later/a.py") == "symbolic link"


@pytest.mark.parametrize(
    ("name", "content", "limit", "expected"),
    [
        ("line.py", b"x" * 1001, 1000, "too large"),
        ("a.js", b"x" * 20_000_000, 1_000_000, "too large"),  # which are not read
        ("a.js", b"x" * 20_000_000, 40_000_000, "minified"),
        ("bundle.js", b"a;" * walking.LONGEST_LINE, 10**6, "minified"),
        ("binary.py", b"\x7fELF\0\0", 1000, "binary"),
        ("utf16.py", CODE.encode("utf-16"), 1000, "binary"),
    ],
    ids=["large", "larger", "line", "bundle", "binary", "UTF-16"],
)
def test_what_is_no_code(root, name, content, limit, expected):
    (root / name).write_bytes(content)
    assert reason(root, name, limit) == expected


def test_what_is_no_file(root):
    """A pipe does not block."""
    os.mkfifo(root / "pipe.py")
    (root / "folder.py").mkdir()
    assert reason(root, "pipe.py") == reason(root, "folder.py") == "no regular file"
    (root / "fits.py").write_text("x" * 1000)
    assert len(read_bytes(root, "fits.py", 1000)) == 1000


def test_encodings_and_line_ends():
    assert decode("\ufeffa\r\nb\rc\n".encode()) == ("a\nb\nc\n", False)
    assert decode("é".encode()) == ("é", False)
    assert decode("x = 'é'".encode("latin-1")) == ("x = 'é'", True)
    assert decode(b"") == ("", False)


def test_what_cannot_be_read(root, monkeypatch):
    """Rights do not bind the administrator, as whom tests may run."""
    write_tree(root, {"a.py": CODE, "locked/b.py": CODE})
    scandir, opened = os.scandir, os.open

    def refuse_folder(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse_file(path: Path, *arguments: int) -> int:
        if Path(path).name == "a.py":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(os, "scandir", refuse_folder)
    monkeypatch.setattr(os, "open", refuse_file)
    assert found(root) == {"a.py": None, "locked": "unreadable"}
    assert reason(root, "a.py") == "unreadable"
