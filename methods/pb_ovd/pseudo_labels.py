"""Pseudo boxes of images as one file of annotations in COCO's form.

Source: docs/papers/pb_ovd.md, section 3.5; salesforce/PB-OVD@f62bdfc `prepare_coco_dataset.py`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Entry = dict[str, Any]


class PseudoObject(NamedTuple):
    """An object's name, its box x1, y1, x2, y2 in pixels, and the box's score."""

    name: str
    box: Sequence[float]
    score: float


def names_of(objects: Iterable[PseudoObject]) -> dict[str, list[PseudoObject]]:
    """An image's objects by their names in lower case, in order of first mention."""
    groups: dict[str, list[PseudoObject]] = {}
    for found in objects:
        groups.setdefault(found.name.lower(), []).append(found)
    return groups


class CocoLabels:
    """Numbers images, annotations and categories from 0 in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}  # of categories
        self.images = self.annotations = 0

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        groups: dict[str, list[PseudoObject]],
        draws: Sequence[float],
    ) -> tuple[Entry, list[Entry]]:
        """Return an image of height and width `size`, and its annotations, one for each name: which
        of several boxes it is, a number in [0, 1) says."""
        height, width = size
        image = {"height": height, "width": width, "file_name": file_name, "id": self.images}
        entries: list[Entry] = []
        for (name, boxes), draw in zip(groups.items(), draws, strict=True):
            _, box, score = boxes[int(draw * len(boxes))]
            x1, y1, x2, y2 = map(int, box)
            entries.append(
                {
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "pseudo_score": score,
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "image_id": self.images,
                    "category_id": self.numbers.setdefault(name, len(self.numbers)),
                    "id": self.annotations + len(entries),
                }
            )
        self.images, self.annotations = self.images + 1, self.annotations + len(entries)
        return image, entries

    @property
    def categories(self) -> list[Entry]:
        return [{"supercategory": n, "name": n, "id": i} for n, i in self.numbers.items()]
