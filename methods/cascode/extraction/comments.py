"""Documentation that stands in comments right before a function."""

import inspect
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

_GAP = re.compile(rb"[ \t\f]*+\n?+[ \t\f]*+")  # no empty line
_LINE_END = re.compile(r"(?m)[ \t]+$")
_STAR = re.compile(r"(?m)^[ \t]*\* ?")
# Words for tools, not for readers: Go's directives, Ruby's linters and magic comments.
_DIRECTIVE = re.compile(
    r"""//(?:[a-z0-9]+:[a-z0-9]|line[ ]|extern[ ]|export[ ]|nolint\b)
    | \#+[ ]*(?:(?:rubocop|steep|typed|frozen_string_literal|encoding|coding):|-\*-)
    | \#+[ ]*:(?:\w*doc|nocov):
    | \#(?:--|\+\+)$ | \#!""",
    re.VERBOSE,
)
Span = tuple[int, int]


def documentation_before(
    data: bytes, comments: Sequence[Span], start: int, language: str
) -> tuple[str, int | None]:
    """Text of the documentation that adjoins byte `start` from above, and where it begins.

    JavaScript, Java and PHP: the nearest `/** */`; other comments may stand between, an empty line
    may not. Go and Ruby: all adjoining lines of comment, without directives to tools. "" and None
    where there is none. `comments` are spans in bytes, ascending.
    """
    nearest_first = (
        (first, data[first:last].decode(errors="replace"))
        for first, last in _adjoining(data, comments, start)
    )
    if language in ("go", "ruby"):
        lines = list(nearest_first)[::-1]
        plain = [_plain(comment) for _, comment in lines if not _DIRECTIVE.match(comment)]
        text = inspect.cleandoc("\n".join(["", *plain]))  # it unindents all lines but the first
        return (text, lines[0][0]) if text else ("", None)
    for first, comment in nearest_first:
        if comment.startswith("/**") and (text := _plain(comment)):
            return text, first
    return "", None


def _adjoining(data: bytes, comments: Sequence[Span], start: int) -> Iterator[Span]:
    """Comments upwards from `start`, as long as they adjoin; none that ends a line of code."""
    edge = start
    for index in range(bisect_right(comments, (start, start)) - 1, -1, -1):
        first, last = comments[index]
        if not _GAP.fullmatch(data, last, edge):
            return
        if b"\n" in data[last:edge] and data[data.rfind(b"\n", 0, first) + 1 : first].strip():
            return
        yield first, last
        edge = first


def _plain(comment: str) -> str:
    """A comment's text: no delimiters, no stars in front of its lines, no common indentation."""
    if comment.startswith("//"):
        return comment[2:].rstrip()
    if comment.startswith("#"):
        return comment.lstrip("#").rstrip()
    if comment.startswith("=begin"):
        return inspect.cleandoc(comment.removeprefix("=begin").rstrip().removesuffix("=end"))
    inner = comment.removesuffix("*/").rstrip("*").removeprefix("/").lstrip("*")
    return inspect.cleandoc(_STAR.sub("", _LINE_END.sub("", inner)))
