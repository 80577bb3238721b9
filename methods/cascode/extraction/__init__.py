"""Functions of source files in CodeSearchNet's six languages and others, outlines of such files.

Every function and method comes out, in conditional blocks and nested classes too, but none that is
defined inside another function; an outline has those, classes, constants and more. `documents` does
the same for texts and configuration. What a corpus or an index leaves out, it decides itself.
"""

from methods.cascode.extraction.function import (
    LANGUAGES,
    SEARCHED,
    Function,
    SourceError,
    language_of,
)

__all__ = [
    "LANGUAGES",
    "SEARCHED",
    "Function",
    "SourceError",
    "functions",
    "language_of",
    "outline",
]


def functions(source: str, language: str) -> list[Function]:
    """All functions of a file in its order, but those with a syntax error; see `trees.functions`.
    An ImportError names what has to be installed."""
    _check(language)
    from methods.cascode.extraction import trees  # which needs the extra

    return trees.functions(source, language)


def outline(source: str, language: str) -> list[Function]:
    """All that a search should find in a file, in its order; see `trees.outline`."""
    _check(language)
    from methods.cascode.extraction import trees

    return trees.outline(source, language)


def _check(language: str) -> None:
    if language not in SEARCHED:
        raise ValueError(f"language {language!r}: known are {', '.join(SEARCHED)}")
