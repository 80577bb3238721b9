"""Arrays that `numpy.save` wrote, for reading files that somebody else may have written.

numpy evaluates a header as Python, warns about odd ones, and believes the shape. Here a header must
be the one line that numpy writes, and its shape that of the file's size.
"""

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.files import open_regular

_START = 10  # bytes before the header: magic, version, the header's length
_HEADER = re.compile(
    rb"\{'descr': '([<>](?:f[248]|i[48]))', 'fortran_order': False, "
    rb"'shape': \((\d{1,15}),(?: (\d{1,15}))?\), \} *\n"
)


def map_array(path: Path, types: Collection[str], dimensions: int = 1) -> NDArray[Any]:
    """The array of a file, mapped into memory.

    Args:
        types: that it may have.

    Raises:
        OSError: it cannot be read, or is no file. ValueError: it is no such array.
    """
    with open_regular(path, follow_links=False) as file:
        start = file.read(_START)
        header = file.read(int.from_bytes(start[8:], "little"))
        match = _HEADER.fullmatch(header)
        if start[:8] != b"\x93NUMPY\x01\x00" or match is None:
            raise ValueError(f"{path.name} is no array")
        kind = np.dtype(match[1].decode())
        shape = tuple(int(size) for size in match.groups()[1:] if size is not None)
        offset = file.tell()
        fits = math.prod(shape) * kind.itemsize == os.fstat(file.fileno()).st_size - offset
        if not fits or len(shape) != dimensions or kind.name not in types or 0 in shape:
            raise ValueError(f"{path.name} is no array of its size and type")
        return np.memmap(file, kind, "r", offset, shape)


def rises(numbers: NDArray[np.int64], least: int, most: int) -> bool:
    """Whether these lie between two, and none is below the one before it.

    Differences would not tell: they can wrap around.
    """
    ordered = (numbers[1:] >= numbers[:-1]).all()
    return bool(least <= numbers[0] and numbers[-1] <= most and ordered)
