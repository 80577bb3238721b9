"""Pickles of plain data, read without running what they ask for."""

import builtins
import pickle
from pathlib import Path
from typing import Any

from shared.data.folders import not_found
from shared.data.images import DataCorruptError, DataNotFoundError


class _PlainUnpickler(pickle.Unpickler):
    """Makes dicts, lists, tuples, sets, texts, bytes and numbers, which need no class of their own;
    but sets do in old pickles."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return getattr(builtins, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: str | Path) -> Any:
    """Read containers, texts and numbers; texts of Python 2 are taken as latin-1.

    Raises:
        DataNotFoundError: no such file.
        DataCorruptError: it asks for anything else, none of which is executed, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataNotFoundError(not_found(path))
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin-1").load()
        # A damaged pickle surfaces as whatever its first wrong byte provokes.
        except Exception as error:
            raise DataCorruptError(
                f"{path} is refused, nothing in it was executed: it is no pickle of plain "
                f"containers, texts and numbers ({type(error).__name__}: {error})"
            ) from error
