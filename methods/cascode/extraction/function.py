"""A function as the extraction hands it over, and the languages that it reads."""

from dataclasses import dataclass
from pathlib import PurePath

LANGUAGES = ("python", "javascript", "java", "go", "ruby", "php")
_SUFFIXES = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".jsx": "javascript",
    ".java": "java",
    ".go": "go",
    ".rb": "ruby",
    ".php": "php",
}


class SourceError(ValueError):
    """A source can't be parsed; the message says where and why."""


@dataclass(frozen=True)
class Function:
    """One function or method.

    Attributes:
        name: "function", or "Class.method" with all enclosing classes.
        language: one of LANGUAGES.
        source: as in the file, documentation included, decorators not (CodeSearchNet's
            `original_string`).
        code: `source` without the documentation; comments are kept.
        tokens: leaf tokens of `code` without comments; a string is one token.
        documentation: the full text without delimiters and common indentation, "" for none.
        start_line: 1-based; end_line: inclusive.
    """

    name: str
    language: str
    source: str
    code: str
    tokens: tuple[str, ...]
    documentation: str
    start_line: int
    end_line: int


def language_of(path: str | PurePath) -> str | None:
    """The language that a file's suffix stands for, None for another file."""
    return _SUFFIXES.get(PurePath(path).suffix.lower())
