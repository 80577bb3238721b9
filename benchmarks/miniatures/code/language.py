"""What the corpus needs to know of a language: where its packages come from, what it leaves out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.miniatures.archives import Pinned
from methods.cascode.cleaning import query_problem, query_tokens
from methods.cascode.extraction import Function

FEWEST_LINES = 3


@dataclass(frozen=True)
class Licence:
    """Of a package: its name (SPDX where known), who gives it, and its full text."""

    name: str
    holder: str
    text: str


@dataclass(frozen=True)
class SourceFile:
    """A file of an archive; `problem` says why it is left out, and then `text` is empty."""

    path: str
    text: str
    problem: str | None = None


@dataclass(frozen=True)
class Language:
    """How the corpus of one language is made.

    Attributes:
        name: as in `methods.cascode.extraction.LANGUAGES`; packages/<name>.yaml lists the packages.
        scheme: of the urls.
        pinned: from an entry of the list, its archive.
        fetch: files of archives, in their order.
        licence: of an archive.
        files: the source files of an archive, in a fixed order.
        functions: of a text. Raises SourceError.
        problem: why a function with these query tokens is left out, None if it is kept.
        query: query tokens of a documentation.
        tools: installed packages besides Python whose versions can change the result.
    """

    name: str
    scheme: str
    pinned: Callable[[Mapping[str, Any]], Pinned]
    fetch: Callable[[Sequence[Any]], list[Path]]
    licence: Callable[[Path], Licence]
    files: Callable[[Path], Iterator[SourceFile]]
    functions: Callable[[str], list[Function]]
    problem: Callable[[Function, list[str]], str | None]
    query: Callable[[str], list[str]] = query_tokens
    tools: tuple[str, ...] = ()


def common_problem(
    function: Function, query: list[str], special: Callable[[str], bool]
) -> str | None:
    """The rules that hold in every language: lines, names, query (section 3, rules 5 to 10).

    Args:
        special: whether a function's own name stands for a protocol of the language.
    """
    if sum(bool(line.strip()) for line in function.code.split("\n")) < FEWEST_LINES:
        return "few lines"
    name = function.name.rpartition(".")[2]
    if "test" in name.lower() or special(name):
        return "name"
    problem = query_problem(query)
    return f"query: {problem}" if problem else None
