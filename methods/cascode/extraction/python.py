"""Functions of Python sources, by the standard library's own parser and tokenizer."""

import ast
import inspect
import io
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator
from itertools import accumulate

from methods.cascode.extraction import Function, SourceError

Definition = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
# Python 3.12 and later cut a formatted string into parts.
_STARTS = {getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT"} - {None}
_ENDS = {getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT"} - {None}
_AFTER_STATEMENT = re.compile(rb"[ \t]*;?[ \t]*\n?")


def functions(source: str) -> list[Function]:
    """All functions and methods of a file in the order of their lines.

    Raises:
        SourceError: this Python's parser does not accept the file.
    """
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    tree = _parsed(source)
    text = source.encode()
    starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
    return [_function(name, node, text, starts) for name, node in _definitions(tree)]


def whole_tokens(code: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of Python code as before 3.12: a formatted string is one STRING.

    Raises:
        SourceError: it can't be tokenized.
    """
    lines = io.StringIO(code).readlines()
    open_strings: list[tuple[int, int]] = []
    try:
        for token in tokenize.generate_tokens(iter(lines).__next__):
            if token.type in _STARTS:
                open_strings.append(token.start)
            elif token.type in _ENDS:
                start = open_strings.pop()
                if not open_strings:
                    text = _between(lines, start, token.end)
                    yield tokenize.TokenInfo(tokenize.STRING, text, start, token.end, token.line)
            elif not open_strings:
                yield token
    except (tokenize.TokenError, SyntaxError) as error:
        raise SourceError(f"not Python: {error}") from error


def leaf_tokens(code: str) -> tuple[str, ...]:
    """Texts of all tokens but comments, line ends and indentation. Raises SourceError."""
    return tuple(
        sys.intern(token.string)  # most are the same few words
        for token in whole_tokens(code)
        if token.type != tokenize.COMMENT and token.string.strip()
    )


def _parsed(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\d" in other people's strings
            return ast.parse(source)
    except SyntaxError as error:
        raise SourceError(f"line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"not Python: {error or type(error).__name__}") from error


def _definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Qualified names and nodes; looks into classes and conditional blocks, not into functions.

    A stack, as hundreds of `elif` would be as many calls.
    """
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        if isinstance(node, Definition):
            yield prefix + node.name, node
            continue
        if isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        inside = [child for block in _BLOCKS for child in getattr(node, block, ())]
        waiting += [(prefix, child) for child in reversed(inside)]


def _function(name: str, node: Definition, text: bytes, starts: list[int]) -> Function:
    """`text` is the file, `starts` the offset of each line: the parser counts bytes."""
    begin, end = _span(node, starts)
    source = text[begin:end].decode()
    documentation = _plain_string(node.body[0])
    code = source
    if documentation is not None:
        code = _without(text[begin:end], *(at - begin for at in _span(node.body[0], starts)))
    return Function(
        name=name,
        language="python",
        source=source,
        code=code,
        tokens=leaf_tokens(code),
        documentation=inspect.cleandoc(documentation or ""),
        start_line=node.lineno,
        end_line=node.end_lineno or node.lineno,
    )


def _plain_string(statement: ast.stmt) -> str | None:
    """Value of a statement that is a string, neither formatted nor bytes."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        # An escape can spell half a surrogate pair, which no file can hold.
        return value.encode(errors="replace").decode() if isinstance(value, str) else None
    return None


def _span(node: ast.stmt, starts: list[int]) -> tuple[int, int]:
    """Offsets of a statement in the file's bytes."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    begin = starts[node.lineno - 1] + node.col_offset
    return begin, starts[node.end_lineno - 1] + node.end_col_offset


def _without(function: bytes, begin: int, end: int) -> str:
    """Cut a statement out, and the rest of its line unless code or a comment follows."""
    gap = _AFTER_STATEMENT.match(function, end)
    assert gap is not None
    before, after = function[:begin], function[gap.end() :]
    if not after:
        before = before.rstrip()
    elif gap.group().endswith(b"\n"):
        before = before.rstrip(b" \t")
    return (before + after).decode()


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Text from (line, column) to (line, column), lines counted from 1."""
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    return "".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])
