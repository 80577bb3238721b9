"""Python's functions: what belongs to them, and their documentation apart."""

import builtins
import inspect
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.cascode.extraction import (
    Function,
    SourceError,
    functions,
    language_of,
    python,
)

SOURCE = '''
import os

class Shelf:
    """A class."""

    @property
    def size(self) -> int:
        """Number of books ä.

        With
            indentation.
        """  # noqa
        # counts
        return sum(f"{b!r:>{9}} {'x'}" "y" for b in self)  # tail

    class Inner:
        async def load(self): "Load it."; return 1

if os.name == "nt":
    def drive(path):
        return path
elif os.sep:
    try:
        pass
    except OSError:
        def drive(path):
            b"bytes"
            def inside():
                """Not a function of its own."""
            return inside
else:
    match os.name:
        case "x":
            def drive(): "only"
'''


def by_name() -> dict[str, Function]:
    return {f"{f.name}:{f.start_line}": f for f in functions(SOURCE, "python")}


def test_names_and_lines() -> None:
    found = functions(SOURCE, "python")
    assert [(f.name, f.start_line, f.end_line) for f in found] == [
        ("Shelf.size", 8, 15),
        ("Shelf.Inner.load", 18, 18),
        ("drive", 21, 22),
        ("drive", 27, 31),
        ("drive", 35, 35),
    ]
    assert {f.language for f in found} == {"python"}


def test_documentation_is_apart_and_comments_are_kept_in_the_code() -> None:
    size = by_name()["Shelf.size:8"]
    assert size.documentation == "Number of books ä.\n\nWith\n    indentation."
    assert size.source.startswith('def size(self) -> int:\n        """Number')
    assert size.code == (
        "def size(self) -> int:\n        # noqa\n        # counts\n"
        '        return sum(f"{b!r:>{9}} {\'x\'}" "y" for b in self)'
    )
    assert size.tokens == (
        *("def", "size", "(", "self", ")", "->", "int", ":", "return", "sum", "("),
        *("f\"{b!r:>{9}} {'x'}\"", '"y"', "for", "b", "in", "self", ")"),
    )


@pytest.mark.parametrize(
    ("name", "documentation", "code"),
    [
        ("Shelf.Inner.load:18", "Load it.", "async def load(self): return 1"),
        ("drive:35", "only", "def drive():"),
    ],
)
def test_documentation_on_the_line_of_other_code(name: str, documentation: str, code: str) -> None:
    function = by_name()[name]
    assert (function.documentation, function.code) == (documentation, code)


def test_bytes_and_formatted_strings_document_nothing() -> None:
    assert by_name()["drive:27"].documentation == ""
    (function,) = functions('def f(x):\n    f"""Doc {x}"""\n    return x\n', "python")
    assert function.documentation == ""
    assert 'f"""Doc {x}"""' in function.tokens


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_any_documentation_is_found_and_leaves_no_trace(text: str, joined: bool) -> None:
    literal = f"({text!r}\n    '')" if joined else repr(text)
    body = "    # a comment\n    return [1, 2]\n"
    (documented,) = functions(f"def f(a, *, b=':'):\n    {literal}\n{body}", "python")
    (plain,) = functions(f"def f(a, *, b=':'):\n{body}", "python")
    assert documented.documentation == inspect.cleandoc(text)
    assert (documented.code, documented.tokens) == (plain.code, plain.tokens)


def test_half_a_surrogate_pair_can_be_written_to_a_file() -> None:
    (function,) = functions(r'def f(): "\ud800 x"', "python")
    assert function.documentation == "? x"


def test_windows_lines_and_byte_order_mark() -> None:
    (function,) = functions("\ufeffdef f():\r\n    '''a\r\nb'''\r\n    return 1\r\n", "python")
    assert function.code == "def f():\n    return 1"
    assert (function.documentation, function.end_line) == ("a\nb", 4)


@pytest.mark.filterwarnings("error")
def test_escapes_in_other_peoples_strings_do_not_warn() -> None:
    assert len(functions('def f():\n    return "\\d"\n', "python")) == 1


def test_hundreds_of_branches() -> None:
    branches = "".join(f"elif x == {i}:\n    def f(): pass\n" for i in range(900))
    assert len(functions(f"if x:\n    pass\n{branches}", "python")) == 900


@pytest.mark.parametrize("source", ["def f(:\n    pass", "a\0b", "x = '\ud800'"])
def test_what_the_parser_refuses(source: str) -> None:
    with pytest.raises(SourceError):
        python.functions(source)


def test_the_error_names_the_line() -> None:
    with pytest.raises(SourceError, match="line 2"):
        python.functions("x = 1\ndef f(:\n")


def test_broken_python_without_tree_sitter(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_trees(name: str, *args: Any, **kwargs: Any) -> Any:
        if "trees" in (args[2] or () if len(args) > 2 else ()):
            raise ImportError("no tree-sitter")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_trees)
    with pytest.raises(SourceError, match="line 1"):
        functions("def f(:\n", "python")
    with pytest.raises(ImportError, match="no tree-sitter"):
        functions("class A {}", "java")


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match=r"'cobol': known are python, javascript"):
        functions("", "cobol")


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "python"),
        (Path("x.MJS"), "javascript"),
        ("x.rb", "ruby"),
        ("Makefile", None),
        ("x.pyc", None),
        ("py", None),
    ],
)
def test_language_by_suffix(path: str | Path, language: str | None) -> None:
    assert language_of(path) == language


def test_formatted_strings_of_newer_pythons_are_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that Python 3.12 gives, replayed."""
    start, middle, end, name = 61, 62, 63, tokenize.NAME
    line = "x = f'{a}{f'b\n"
    parts = [
        (name, "x", 0, 1), (tokenize.OP, "=", 2, 3), (start, "f'", 4, 6), (name, "a", 7, 8),
        (start, "f'", 10, 12), (middle, "b", 12, 13), (end, "'", 13, 13), (end, "'", 13, 13),
    ]  # fmt: skip
    tokens = [tokenize.TokenInfo(t, s, (1, a), (1, b), line) for t, s, a, b in parts]
    monkeypatch.setattr(python, "_STARTS", {start})
    monkeypatch.setattr(python, "_ENDS", {end})
    monkeypatch.setattr(tokenize, "generate_tokens", lambda _: iter(tokens))
    assert [t.string for t in python.whole_tokens(line)] == ["x", "=", "f'{a}{f'b"]


def test_formatted_strings_over_several_lines_by_this_python() -> None:
    code = "def f():\n    return f'''{\n a}é{{}}\n{f\"{b}\"}''', 1"
    assert python.leaf_tokens(code)[6:] == ("f'''{\n a}é{{}}\n{f\"{b}\"}'''", ",", "1")


def test_extraction_needs_no_heavy_library() -> None:
    call = "import methods.cascode.extraction.python, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
