"""Masks in COCO's notations, run lengths and polygons, of many objects in two arrays.

What stands in a file is checked here, before pycocotools gets it: run lengths that fill more than
the picture make its intersections run on for ever, and a polygon far outside of it takes as many
steps as it is long.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.readers.files import is_integer, shortened

RunLengths = dict[str, Any]
"""pycocotools' form of a mask: `size` [height, width] and `counts`, compressed, bytes."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Outlines:
    """The masks of N objects: object n has the compressed run lengths
    `counts[starts[n] : starts[n + 1]]`, none where the file has none."""

    counts: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def compressed(self, number: int, size: Size) -> RunLengths | None:
        """The mask of an object in an image of `size` (height, width) as pycocotools takes it; None
        where the file has none."""
        begin, end = self.starts[number : number + 2]
        counts = self.counts[begin:end].tobytes()
        return {"size": list(size), "counts": counts} if counts else None


@cache
def mask_tools() -> ModuleType:
    """pycocotools.mask, which is an extra."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        needed = "masks need pycocotools: pip install 'tenfold[detection]'"
        raise ModuleNotFoundError(needed) from error
    return mask


def outlines(values: Iterable[Any], sizes: Iterable[Size]) -> Outlines:
    """The checked `segmentation` of each of N objects, given the (height, width) of its image.

    Raises:
        OutlineError: none of COCO's notations, or it doesn't fit the image.
    """
    counts = []
    for number, (value, size) in enumerate(zip(values, sizes, strict=True)):
        try:
            counts.append(b"" if value is None else _counts(value, size))
        except (ValueError, TypeError, OverflowError) as error:
            raise OutlineError(number, str(error)) from None
    starts = np.cumsum(np.array([0, *map(len, counts)], np.int64))
    return Outlines(np.frombuffer(b"".join(counts), np.uint8), starts)


def _counts(value: Any, size: Size) -> bytes:
    tools = mask_tools()
    if isinstance(value, dict):
        return tools.frPyObjects({"size": list(size), "counts": _runs(value, size)}, *size)[
            "counts"
        ]
    return tools.merge(tools.frPyObjects(_polygons(value, size), *size))["counts"]


class OutlineError(ValueError):
    """The `number`-th of several masks is wrong; the message says how."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def decompressed(counts: str | bytes) -> NDArray[np.int64]:
    """The run lengths that COCO's compressed text stands for; ValueError if it stands for none.

    Five bits a sign, least first, of which the sixth says that more follow; the last is signed, and
    from the fourth run on a number is the difference from the run before the last.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    signs = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not signs.size or signs.min() < 0 or signs.max() > 63 or signs[-1] & 32:
        raise ValueError("its counts are no run lengths")
    ends = np.flatnonzero((signs & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # seven signs hold every number of 32 bits
        raise ValueError("its counts are no run lengths")
    places = np.arange(len(signs)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((signs & 31) << (5 * places), starts)
    values -= np.where(signs[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _runs(value: dict[str, Any], size: Size) -> list[int]:
    counts = value.get("counts")
    if (given := value.get("size")) != list(size):
        whose = f"its size is {shortened(given)}"
        raise ValueError(f"{whose}, but the image has height and width {list(size)}")
    if isinstance(counts, str | bytes):
        runs = decompressed(counts)
    elif isinstance(counts, list) and all(map(is_integer, counts)):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError("its counts are no run lengths")
    if runs.min(initial=0) < 0 or runs.max(initial=0) > np.prod(size):
        raise ValueError("its counts have a run below 0 or beyond the image")
    if runs.sum() != np.prod(size):
        raise ValueError(f"its runs cover {runs.sum()} of {np.prod(size)} pixels")
    return runs.tolist()


def _polygons(value: Any, size: Size) -> list[list[float]]:
    if not isinstance(value, list) or not value or not all(isinstance(p, list) for p in value):
        raise ValueError(f"it is {shortened(value)}, expected run lengths or a list of polygons")
    for polygon in value:
        points = np.array(polygon)
        if points.ndim != 1 or points.dtype.kind not in "if" or len(points) % 2 or len(points) < 6:
            raise ValueError(f"its polygon {shortened(polygon)} is no list [x, y, x, y, x, y, ...]")
        limits = np.tile([size[1], size[0]], len(points) // 2)
        if not ((points >= -limits) & (points <= 2 * limits)).all():
            raise ValueError("its polygon lies more than the image's size outside of it")
    return value
