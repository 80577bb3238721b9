"""Documentation that stands in comments: right before a function, or where a file begins."""

import html
import inspect
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set

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
_TOOLS = re.compile(
    r"""\#!|\#[ ]*(?:shellcheck[ ]|noqa\b|type:|pylint:|ruff:|fmt:|-\*-|vim?:)
    | /[/*]\W*(?:eslint|jshint|globals?[ ]|@ts-|tslint:|prettier-|clang-format|NOLINT|istanbul)""",
    re.VERBOSE,
)
_MARK = re.compile(r"\A(//|/\*|#)[/!*:]+<?")  # `///`, `//!<`, `/**`, `#:`
_NAMING_TAG = re.compile(r"<\w+\s+\w+=\"([^\"<>]*)\"\s*/>")  # C#'s <see cref="Name"/>
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LICENCE = re.compile(r"(?i)licen[cs]e|copyright")
_ALL = ("go", "ruby", "python", "c", "cpp", "shell")  # of these every adjoining comment counts
_MARKS = {"rust": ("///", "/**"), "csharp": ("///", "/**")}  # of these all that begin so
Span = tuple[int, int]


def documentation_before(
    data: bytes, comments: Sequence[Span], start: int, language: str
) -> tuple[str, int | None]:
    """Text of the documentation that adjoins byte `start` from above, and where it begins.

    JavaScript, Java and PHP: the nearest `/** */`; other comments may stand between, an empty line
    may not. Rust and C#: all `///` and `/** */`. Others: all adjoining lines of comment, without
    directives to tools. "" and None where there is none. `comments` are spans in bytes, ascending.
    """
    nearest_first = (
        (first, data[first:last].decode(errors="replace"))
        for first, last in _adjoining(data, comments, start)
    )
    if language in _ALL or language in _MARKS:
        marks = _MARKS.get(language, "")
        lines = [(first, text) for first, text in nearest_first if text.startswith(marks)][::-1]
        text = _text([comment for _, comment in lines], language)
        return (text, lines[0][0]) if text else ("", None)
    for first, comment in nearest_first:
        if comment.startswith("/**") and (text := _plain(comment)):
            return text, first
    return "", None


def opening_text(
    data: bytes, comments: Sequence[Span], taken: Set[int], language: str
) -> tuple[str, Span] | None:
    """Text of the first block among the comments before any code that is about the file, and where
    it is: no licence, and none that documents what follows (`taken`). Rust's begins with `//!`."""
    blocks: list[list[Span]] = []
    for first, last in comments:
        if blocks and _GAP.fullmatch(data, blocks[-1][-1][1], first):
            blocks[-1].append((first, last))
        else:
            blocks.append([(first, last)])
    for block in blocks:
        texts = [data[first:last].decode(errors="replace") for first, last in block]
        if language == "rust":
            texts = [text for text in texts if text.startswith(("//!", "/*!"))]
        text = _text(texts, language)
        if text and not _LICENCE.search(text) and taken.isdisjoint(first for first, _ in block):
            return text, (block[0][0], block[-1][1])
    return None


def _text(comments: Sequence[str], language: str) -> str:
    """Text of comments in a row, without what is only for tools."""
    if language in ("go", "ruby"):
        plain = [_plain(comment) for comment in comments if not _DIRECTIVE.match(comment)]
    else:
        kept = [comment for comment in comments if not _TOOLS.match(comment)]
        plain = [_plain(_MARK.sub(r"\1", comment)) for comment in kept]
    text = inspect.cleandoc("\n".join(["", *plain]))  # it unindents all lines but the first
    if language == "csharp":
        text = html.unescape(_TAG.sub("", _NAMING_TAG.sub(r"\1", text))).strip()
    return text


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
