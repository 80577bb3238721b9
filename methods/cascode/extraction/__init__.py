"""Functions of source files in CodeSearchNet's six languages, each with its documentation apart.

Every function and method comes out, in conditional blocks and nested classes too, but none that is
defined inside another function. What a corpus or an index leaves out, it decides itself.
"""

from methods.cascode.extraction.function import LANGUAGES, Function, SourceError, language_of

__all__ = ["LANGUAGES", "Function", "SourceError", "functions", "language_of"]


def functions(source: str, language: str) -> list[Function]:
    """All functions of a file in its order, but those with a syntax error; see `trees.functions`.
    An ImportError names what has to be installed."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: known are {', '.join(LANGUAGES)}")
    from methods.cascode.extraction import trees  # which needs the extra

    return trees.functions(source, language)
