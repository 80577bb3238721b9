"""A function or another entry as the extraction hands it over, and the languages that it reads."""

from dataclasses import dataclass
from pathlib import PurePath

LANGUAGES = ("python", "javascript", "java", "go", "ruby", "php")
SEARCHED = (*LANGUAGES, "typescript", "tsx", "c", "cpp", "rust", "csharp", "shell")
_ENDINGS = {
    **{"python": "py", "java": "java", "go": "go", "ruby": "rb", "php": "php", "rust": "rs"},
    **{"javascript": "js mjs cjs jsx", "typescript": "ts mts cts", "tsx": "tsx", "csharp": "cs"},
    **{"c": "c h", "cpp": "cc cpp cxx hpp hh hxx", "shell": "sh bash"},
}
_SUFFIXES = {f".{end}": language for language, ends in _ENDINGS.items() for end in ends.split()}


class SourceError(ValueError):
    """A source can't be parsed; the message says where and why."""


@dataclass(frozen=True)
class Function:
    """One function or method, or another entry of an outline."""

    name: str  # "function", or "Class.method" with all enclosing classes
    language: str
    source: str  # with documentation, without decorators (CodeSearchNet's `original_string`)
    code: str  # `source` without the documentation; comments are kept
    tokens: tuple[str, ...]  # leaves of `code` without comments; a string is one token
    documentation: str  # without delimiters and common indentation, "" for none
    start_line: int  # 1-based
    end_line: int  # inclusive
    kind: str = "function"  # "class", "constant", "module" (without a name), "document"


def language_of(path: str | PurePath) -> str | None:
    """The language that a file's suffix stands for, None for another file."""
    return _SUFFIXES.get(PurePath(path).suffix.lower())
