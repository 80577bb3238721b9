"""Functions of Python files for a corpus, which takes only what this Python accepts."""

import ast
import warnings

from methods.cascode.extraction import Function, SourceError, trees


def functions(source: str) -> list[Function]:
    """All functions and methods of a file.

    Raises:
        SourceError: this Python's parser does not accept the file, as of Python 2.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\d" in other people's strings
            ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"not Python: {error or type(error).__name__}") from error
    return trees.functions(source, "python")
