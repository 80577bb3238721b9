"""Functions of source files in CodeSearchNet's six languages, each with its documentation apart.

Every function and method comes out, in conditional blocks and nested classes too, but none that is
defined inside another function. What a corpus or an index leaves out, it decides itself.
"""

from dataclasses import dataclass
from pathlib import PurePath

LANGUAGES = ("python", "javascript", "java", "go", "ruby", "php")
_SUFFIXES = {
    **{f".{suffix}": "javascript" for suffix in ("js", "mjs", "cjs", "jsx")},
    **{".py": "python", ".java": "java", ".go": "go", ".rb": "ruby", ".php": "php"},
}


class SourceError(ValueError):
    """A source can't be parsed; the message says where and why."""


@dataclass(frozen=True)
class Function:
    """One function or method."""

    name: str  # "function", or "Class.method" with all enclosing classes
    language: str
    source: str  # with documentation, without decorators (CodeSearchNet's `original_string`)
    code: str  # `source` without the documentation; comments are kept
    tokens: tuple[str, ...]  # leaves of `code` without comments; a string is one token
    documentation: str  # without delimiters and common indentation, "" for none
    start_line: int  # 1-based
    end_line: int  # inclusive


def language_of(path: str | PurePath) -> str | None:
    """The language that a file's suffix stands for, None for another file."""
    return _SUFFIXES.get(PurePath(path).suffix.lower())


def functions(source: str, language: str) -> list[Function]:
    """All functions of a file in its order, but those with a syntax error; see `trees.functions`.
    An ImportError names what has to be installed."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: known are {', '.join(LANGUAGES)}")
    from methods.cascode.extraction import trees  # which needs the extra

    return trees.functions(source, language)
