"""Masks in COCO's notations, run lengths and polygons, of many objects in a few arrays.

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
    """The masks of N objects.

    Object n has the runs `runs[run_starts[n] : run_starts[n + 1]]`, alternately off and on down the
    columns, or the polygons `polygon_starts[n]` to `polygon_starts[n + 1]`, of which p has the
    coordinates x, y, x, y, ... `points[point_starts[p] : point_starts[p + 1]]`; or neither.
    """

    runs: NDArray[np.int32]
    run_starts: NDArray[np.int64]
    points: NDArray[np.float64]
    point_starts: NDArray[np.int64]
    polygon_starts: NDArray[np.int64]

    def notation(self, number: int, size: Size) -> RunLengths | list[list[float]] | None:
        """What a COCO file says of an object in an image of `size` (height, width); None where it
        says nothing."""
        begin, end = self.run_starts[number : number + 2]
        if begin < end:
            return {"size": list(size), "counts": self.runs[begin:end].tolist()}
        first, last = self.polygon_starts[number : number + 2]
        edges = self.point_starts[first : last + 1]
        polygons = np.split(self.points[edges[0] : edges[-1]], edges[1:-1] - edges[0])
        return [polygon.tolist() for polygon in polygons] if first < last else None

    def compressed(self, number: int, size: Size) -> RunLengths | None:
        """The mask of an object as pycocotools takes it; None where the file has none."""
        notation = self.notation(number, size)
        if notation is None:
            return None
        made = mask_tools().frPyObjects(notation, *size)
        return mask_tools().merge(made) if isinstance(made, list) else made


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
    runs, points, parts = [], [], []
    none: NDArray[np.int32] = np.zeros(0, np.int32)
    for number, (value, size) in enumerate(zip(values, sizes, strict=True)):
        own: list[NDArray[np.float64]] = []
        lengths = none
        try:
            if isinstance(value, dict):
                lengths = _runs(value, size)
            elif value is not None:
                own = _polygons(value, size)
        except (ValueError, TypeError, OverflowError) as error:
            raise OutlineError(number, str(error)) from None
        runs.append(lengths)
        points += own
        parts.append(len(own))
    return Outlines(
        np.concatenate([none, *runs]),
        _starts(map(len, runs)),
        np.concatenate([np.zeros(0), *points]),
        _starts(map(len, points)),
        _starts(parts),
    )


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


def _runs(value: dict[str, Any], size: Size) -> NDArray[np.int32]:
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
    return runs.astype(np.int32)


def _polygons(value: Any, size: Size) -> list[NDArray[np.float64]]:
    if not isinstance(value, list) or not value or not all(isinstance(p, list) for p in value):
        raise ValueError(f"it is {shortened(value)}, expected run lengths or a list of polygons")
    polygons = []
    for polygon in value:
        points = np.array(polygon)
        if points.ndim != 1 or points.dtype.kind not in "if" or len(points) % 2 or len(points) < 6:
            raise ValueError(f"its polygon {shortened(polygon)} is no list [x, y, x, y, x, y, ...]")
        limits = np.tile([size[1], size[0]], len(points) // 2)
        if not ((points >= -limits) & (points <= 2 * limits)).all():
            raise ValueError("its polygon lies more than the image's size outside of it")
        polygons.append(points.astype(np.float64))
    return polygons


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum(np.array([0, *lengths], np.int64))
