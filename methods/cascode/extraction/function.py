"""A function as the extraction hands it over, and the languages that it reads."""

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
