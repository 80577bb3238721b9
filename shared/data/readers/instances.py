"""Objects in pictures: the instances files of COCO and of LVIS v0.5 and v1, in columns.

    images        id, file_name (LVIS v1: coco_url), height, width;
                  LVIS: neg_category_ids, not_exhaustive_category_ids
    annotations   id, image_id, category_id, bbox [x, y, width, height], area, segmentation,
                  iscrowd (COCO); `ignore` counts as the latter
    categories    id, name; LVIS: frequency

What evaluation compares stays as the file has it. `usable` says what a detector can learn from.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.readers.files import (
    image_path,
    is_integer,
    is_number,
    is_text,
    read_json,
    shortened,
)
from shared.data.readers.outlines import OutlineError, Outlines, outlines

log = logging.getLogger(__name__)

LARGEST_SIDE = 1 << 15  # px, as far as any of our formats goes
PREFIX = "COCO_"  # LVIS v0.5 names pictures as COCO's folders of 2014 do, which are those of 2017
PREFIX_LENGTH = len("COCO_val2014_")
Entry = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Lists:
    """Labels of each of several images, `values[starts[i] : starts[i + 1]]` of image i."""

    values: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        return self.values[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True)
class Instances:
    """I images with N annotations of K categories; a label is the rank of a category's id, from 1.

    Attributes:
        origin: the file, for messages.
        image_ids: (I,) int64.
        paths: (I,) bytes, of the pictures; none of annotations alone.
        sizes: (I, 2) int64, height and width.
        category_ids: (K,) int64, rising.
        class_names: of the K categories.
        starts: (I + 1,) int64; the annotations of image i are `starts[i]` to `starts[i + 1]`.
        ids: (N,) int64.
        labels: (N,) int64 in 1..K.
        boxes: (N, 4) float64, x, y, width and height as in the file.
        areas: (N,) float64, of the masks, as in the file.
        crowd: (N,) bool, a region of many objects, or one that is to be ignored.
        masks: the annotations' outlines, empty where `read_instances` was not asked for them.
        negative, not_exhaustive: of LVIS alone, the labels that an image is known to lack, and
            those of which it may show more than is annotated; else None.
        frequencies: of LVIS alone, a letter r, c or f for each category; else "".
    """

    origin: str
    image_ids: NDArray[np.int64]
    paths: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: Outlines | None = None
    negative: Lists | None = None
    not_exhaustive: Lists | None = None
    frequencies: str = ""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def federated(self) -> bool:
        """Whether it says of each image which categories were looked for, as LVIS does."""
        return self.negative is not None

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """(N,) the image, 0..I-1, of each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def corners(self) -> NDArray[np.float64]:
        """(N, 4) x1, y1, x2, y2 of the boxes, clipped to their images."""
        corners = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)
        return corners.clip(0, self.sizes[self.images][:, [1, 0, 1, 0]])

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """(N,) objects, no regions of many, of some area and with a pixel of the image in each
        direction (as twangnh/SimCal@e5f3076 `mmdet/datasets/coco.py:_parse_ann_info`)."""
        widths_heights = self.corners[:, 2:] - self.corners[:, :2]
        return ~self.crowd & (self.areas > 0) & (widths_heights >= 1).all(axis=1)

    @cached_property
    def instance_counts(self) -> NDArray[np.int64]:
        """(K,) annotations of each class, regions of many included."""
        return np.bincount(self.labels - 1, minlength=self.num_classes)

    @cached_property
    def image_counts(self) -> NDArray[np.int64]:
        """(K,) images of each class."""
        labels = np.unique(np.stack([self.images, self.labels - 1]), axis=1)[1]
        return np.bincount(labels, minlength=self.num_classes)

    def of_image(self, number: int) -> slice:
        """The annotations of the `number`-th image."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def size(self, number: int) -> tuple[int, int]:
        """Height and width of the `number`-th image."""
        height, width = self.sizes[number].tolist()
        return height, width


def read_instances(
    path: str | Path, root: str | Path | None = None, masks: bool = False
) -> Instances:
    """Read a file whose pictures lie below `root`; without one no picture is looked for, as in
    evaluation. The masks are read only where they are asked for.

    Boxes that leave their image and those that nothing can be learnt from are counted in the log.

    Raises:
        DataNotFoundError: there is no such file.
        DataCorruptError: it is no instances file, or contradicts itself; says which entry.
    """
    images, annotations, categories = tables(path, "images", "annotations", "categories")
    if not images.rows or not categories.rows:
        raise DataCorruptError(f"{path}: no images, or no categories")

    category_ids = categories.unique_ids()
    names = categories.column("name", lambda v: is_text(v) and bool(v.strip()), "a text")
    by_rank = np.argsort(category_ids)
    category_ids = category_ids[by_rank]

    image_ids = images.unique_ids()
    heights, widths = (
        images.column(key, lambda v: is_integer(v) and 0 < v <= LARGEST_SIDE, "a number of pixels")
        for key in ("height", "width")
    )
    sizes = np.stack([np.array(heights), np.array(widths)], axis=1).astype(np.int64)
    paths = [] if root is None else [images.picture(n, root) for n in range(len(image_ids))]

    image = annotations.members("image_id", image_ids, "image")
    order = np.argsort(image, kind="stable")
    annotations = annotations.ordered(order)
    image = image[order]
    ids = annotations.unique_ids()
    labels = annotations.members("category_id", category_ids, "category") + 1
    boxes = annotations.column("bbox", _is_box, "[x, y, width, height]")
    areas = annotations.column("area", lambda v: is_number(v) and v >= 0, "a number from 0 on")
    flags = (
        annotations.column(key, lambda v: is_integer(v) and v in (0, 1), "0 or 1", default=0)
        for key in ("iscrowd", "ignore")
    )
    crowd, ignored = (np.array(values, bool) for values in flags)
    found = Instances(
        origin=str(path),
        image_ids=image_ids,
        paths=np.array(paths, np.bytes_),
        sizes=sizes,
        category_ids=category_ids,
        class_names=tuple(names[rank] for rank in by_rank),
        starts=np.searchsorted(image, np.arange(len(image_ids) + 1)),
        ids=ids,
        labels=labels,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=crowd | ignored,
        masks=_masks(annotations, sizes[image]) if masks else None,
        **_federated(images, categories.ordered(by_rank), category_ids),
    )
    _report(found)
    return found


class Table:
    """The entries of a list, named `origin` in messages; `places` are their numbers in it."""

    def __init__(self, origin: str, rows: Any, places: Sequence[int] | None = None) -> None:
        if not isinstance(rows, list):
            raise DataCorruptError(f"{origin}: expected a list, got {type(rows).__name__}")
        self.origin, self.rows = origin, rows
        self.places = range(len(rows)) if places is None else places
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataCorruptError(f"{self.where(number)}: {shortened(row)} is no object")

    def where(self, number: int) -> str:
        return f"{self.origin}, entry {self.places[number]}"

    def ordered(self, order: NDArray[np.int64]) -> "Table":
        """The same entries in another order."""
        places = [self.places[number] for number in order]
        return Table(self.origin, [self.rows[number] for number in order], places)

    def column(
        self, key: str, right: Callable[[Any], bool], wanted: str, default: Any = None
    ) -> list[Any]:
        """The entries' values of `key`, each of which must be `right`."""
        values = [row.get(key, default) for row in self.rows]
        for number, value in enumerate(values):
            if not right(value):
                told = f"{key} is {shortened(value)}, expected {wanted}"
                raise DataCorruptError(f"{self.where(number)}: {told}")
        return values

    def unique_ids(self, key: str = "id") -> NDArray[np.int64]:
        """(n,) the entries' values of `key`, integers, each only once."""
        ids = np.array(self.column(key, is_integer, "an integer"), np.int64)
        _, first = np.unique(ids, return_index=True)
        if len(first) < len(ids):
            number = int(np.setdiff1d(np.arange(len(ids)), first)[0])
            raise DataCorruptError(f"{self.where(number)}: {key} {ids[number]} is there before")
        return ids

    def by_id(self, key: str = "id") -> dict[int, Entry]:
        """The entries by their values of `key`, see `unique_ids`."""
        return dict(zip(self.unique_ids(key).tolist(), self.rows, strict=True))

    def members(self, key: str, ids: NDArray[np.int64], kind: str) -> NDArray[np.int64]:
        """(n,) the place in `ids` of what each entry names by `key`."""
        values = np.array(self.column(key, is_integer, "an integer"), np.int64)
        return places_of(values, ids, lambda number: f"{self.where(number)}: {key}", kind)

    def picture(self, number: int, root: str | Path) -> bytes:
        """The path of an image's picture, below its root."""
        name, url = (self.rows[number].get(key) for key in ("file_name", "coco_url"))
        if isinstance(name, str) and name:
            below = name[PREFIX_LENGTH:] if name.startswith(PREFIX) else name
        elif isinstance(url, str) and url:
            below = "/".join(PurePosixPath(url).parts[-2:])  # as in train2017/000000000009.jpg
        else:
            raise DataCorruptError(f"{self.where(number)}: no file_name, nor a coco_url")
        try:
            return os.fsencode(image_path(root, below))
        except DataCorruptError as error:
            raise DataCorruptError(f"{self.where(number)}: {error}") from None


def tables(path: str | Path, *parts: str) -> list[Table]:
    """The lists of these names in the JSON object of a file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataCorruptError(f"{path}: expected a JSON object with the lists {', '.join(parts)}")
    return [Table(f"{path}, {part}", content.get(part)) for part in parts]


def places_of(
    values: NDArray[np.int64], ids: NDArray[np.int64], where: Callable[[int], str], kind: str
) -> NDArray[np.int64]:
    """(n,) the place of each value in `ids`; DataCorruptError, which `where` begins, if one is
    none of them."""
    order = np.argsort(ids)
    places = np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)
    places = order[places]
    if len(unknown := np.flatnonzero(ids[places] != values)):
        first = int(unknown[0])
        raise DataCorruptError(f"{where(first)} {values[first]} is the id of no {kind}")
    return places


def _masks(annotations: Table, sizes: NDArray[np.int64]) -> Outlines:
    values = (row.get("segmentation") or None for row in annotations.rows)
    try:
        return outlines(values, map(tuple, sizes.tolist()))
    except OutlineError as error:
        where = annotations.where(error.number)
        raise DataCorruptError(f"{where}: segmentation: {error}") from None


def _federated(
    images: Table, categories: Table, category_ids: NDArray[np.int64]
) -> Mapping[str, Any]:
    """What only LVIS says, by the names of `Instances`."""
    keys = {"negative": "neg_category_ids", "not_exhaustive": "not_exhaustive_category_ids"}
    if not any(key in row for row in images.rows for key in keys.values()):
        return {}
    found: dict[str, Any] = {name: _labels(images, key, category_ids) for name, key in keys.items()}
    is_letter = "r, c or f: rare, common or frequent"
    letters = categories.column("frequency", lambda v: v in ("r", "c", "f"), is_letter)
    return found | {"frequencies": "".join(letters)}


def _labels(images: Table, key: str, category_ids: NDArray[np.int64]) -> Lists:
    lists = images.column(
        key, lambda v: isinstance(v, list) and all(map(is_integer, v)), "a list of category ids"
    )
    starts = np.cumsum([0, *map(len, lists)])
    values = np.array([value for row in lists for value in row], np.int64)

    def where(number: int) -> str:
        row = int(np.searchsorted(starts, number, side="right")) - 1
        return f"{images.where(row)}: {key}"

    return Lists(places_of(values, category_ids, where, "category") + 1, starts)


def _report(found: Instances) -> None:
    """Say what there is, and what is amiss without being wrong."""
    whole = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    clipped = (whole != found.corners).any(axis=1)
    told = {
        "boxes clipped to their image": clipped.sum(),
        "boxes of no area left out of training": (~found.usable & ~found.crowd).sum(),
        "images without an object": len(found) - len(np.unique(found.images[found.usable])),
        "classes without an image": (found.image_counts == 0).sum(),
    }
    amiss = ", ".join(f"{count} {what}" for what, count in told.items() if count)
    about = f"{len(found)} images, {len(found.labels)} annotations, {found.num_classes} classes"
    log.info("%s: %s%s", found.origin, about, f"; {amiss}" if amiss else "")


def _is_box(value: Any) -> bool:
    right = isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
    return right and min(value[2:]) >= 0
