"""Pickles of plain data and of arrays, read without running what they ask for.

The interpreter is Python's own, in Python: the one in C lets a few bytes fill the memory.
"""

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.data.readers.files import LARGEST, read_data, refusing, shortened

DEEPEST = 50  # containers within one another
REPEATED = 4  # items for each byte: containers may occur in several places, but not grow by that


def read_plain_pickle(path: str | Path, arrays: bool = False, encoding: str = "latin-1") -> Any:
    """Read containers, texts and numbers; what asks for anything else is refused. With `arrays` a
    dict that holds everything may have numpy's arrays of numbers as values. `encoding` is that of
    Python 2's texts; "bytes" leaves them as they are."""
    content = read_data(Path(path))
    # A damaged pickle surfaces as whatever its first wrong byte provokes.
    with refusing(f"{path} is refused, nothing in it was executed: no plain pickle", Exception):
        found = _Unpickler(io.BytesIO(content), arrays, encoding).load()
        if arrays and isinstance(found, dict):
            found = {k: v.values if isinstance(v, _Array) else v for k, v in found.items()}
        _check_tree(found, REPEATED * len(content))
    return found


class _Type:
    """Stands in for numpy's type of numbers."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch("[biuf][1248]", self.code):
            raise pickle.UnpicklingError(f"arrays of {shortened(code)}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.code = {"|": "", "<": "<", ">": ">"}[order] + self.code


class _Array:
    """Stands in for numpy's array, which a pickle makes empty and fills thereafter."""

    values: NDArray

    def __init__(self, *_: object) -> None:
        self.values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        flat = np.frombuffer(content, kind.code)
        self.values = flat.reshape(shape, order="F" if by_columns else "C")


class _Unpickler(pickle._Unpickler):
    """Keys are numbers and texts: others may take exponential time to compare. There are no sets,
    whose members are keys, too; of what is made, only arrays need a class to be found."""

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, arrays: bool, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.known: dict[str, Any] = {}
        if arrays:
            self.known |= {"_codecs.encode": _encoded, "numpy.dtype": _Type, "numpy.ndarray": None}
            for module in ("numpy.core", "numpy._core"):
                self.known[f"{module}.multiarray._reconstruct"] = _Array

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in self.known:
            raise pickle.UnpicklingError(f"it asks for {full}")
        return self.known[full]

    # `pop_mark` puts another list at `stack`: what it gives must be made before that is changed.

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_pairs([key, value]))

    def set_items(self) -> None:
        pairs = _pairs(self.pop_mark())
        self.stack[-1].update(pairs)

    def make_dict(self) -> None:
        pairs = _pairs(self.pop_mark())
        self.stack.append(pairs)

    def refuse_set(self) -> None:
        raise pickle.UnpicklingError("it holds a set")

    def build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Type | _Array):
            raise pickle.UnpicklingError("it changes something that is no array")
        self.stack[-1].__setstate__(state)

    dispatch |= {
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.DICT[0]: make_dict,
        pickle.EMPTY_SET[0]: refuse_set,
        pickle.FROZENSET[0]: refuse_set,
        pickle.BUILD[0]: build,
    }


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _keys(keys: list[Any]) -> list[Any]:
    """What takes no time to compare and, among others, to find: integers may all hash alike."""
    for key in keys:
        small = type(key) is int and abs(key) <= LARGEST
        if not small and type(key) not in (str, bytes, bool, float, type(None)):
            raise pickle.UnpicklingError(f"{shortened(key)} as a key")
    return keys


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    return text.encode("latin-1")


def _check_tree(content: Any, most: int) -> None:
    """Refuse what holds little but takes for ever to walk through, and what holds itself."""
    level = [content]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict | list | tuple):
                most -= len(item)
                if most < 0:
                    raise pickle.UnpicklingError("it repeats itself without end")
                inner += item.values() if isinstance(item, dict) else item
            elif isinstance(item, _Array | _Type):
                raise pickle.UnpicklingError("an array within another container")
        if not inner:
            return
        level = inner
    raise pickle.UnpicklingError("it is nested too deep")
