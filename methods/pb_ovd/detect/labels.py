"""labels.json: images with their pseudo boxes, in COCO's form."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from methods.pb_ovd.detect.labelling import Settings, draws
from methods.pb_ovd.pseudo_labels import CocoLabels, PseudoObject, names_of
from shared.data.captioned.records import Record, Source
from shared.data.captioned.working import Row
from shared.files import replacing
from shared.tools.finishing import packed
from shared.tools.tool import Told

LABELS = "labels.json"


class Labels:
    """Counts mentions and boxes, and keeps the objects of images, which several entries may name,
    until all are known.

    The official code keeps only those of an image's last entry.
    """

    def __init__(self) -> None:
        self._mentions = self._silent = 0
        self._boxes: Counter[str] = Counter()  # by name, before one is chosen
        self._labels = CocoLabels()
        # By name, in the order of first entries: key and size of that one, objects of all.
        self._images: dict[str, tuple[str, tuple[int, int], list[PseudoObject]]] = {}

    def add(self, record: Record, row: Row) -> Told:
        if "sha256" not in row:
            return Told()
        objects = row["objects"]
        self._mentions += row["mentions"]
        self._silent += not row["mentions"]
        self._boxes.update(name.lower() for name, _, _ in objects)
        if not objects:
            title = "a mention without a box" if row["mentions"] else "nothing mentioned"
            return Told(group=(1, title), shown=(record.texts, []))
        *_, known = self._images.setdefault(record.name, (record.key, tuple(row["size"]), []))
        known += [PseudoObject(*one) for one in objects]
        return Told(group=(0, "boxes for words"), shown=(record.texts, objects))

    def write(self, path: Path, seed: int) -> None:
        """Write images, annotations and categories, an entry a line."""
        images, annotations = [], []
        for name, (key, size, objects) in self._images.items():
            groups = names_of(objects)
            numbers = draws(seed, key, "pseudo boxes", len(groups))
            image, entries = self._labels.add(name, size, groups, numbers)
            images.append(image)
            annotations += entries
        with replacing(path) as file:
            file.write(b'{"images": [' + _lines(images))
            file.write(b'],\n"annotations": [' + _lines(annotations))
            categories = packed(self._labels.categories).strip()
            file.write(b'],\n"categories": ' + categories + b"}\n")

    def facts(self) -> dict[str, Any]:
        return {
            "entries_without_mention": self._silent,
            "mentions": self._mentions,
            "boxes": self._boxes.total(),
            "images": self._labels.images,
            "annotations": self._labels.annotations,
            "classes": {name: self._boxes[name] for name in self._labels.numbers},
        }


def _lines(entries: Iterable[dict[str, Any]]) -> bytes:
    return b",".join(b"\n" + packed(entry).strip() for entry in entries)


@contextmanager
def labels(folder: Path, source: Source, settings: Settings) -> Iterator[Labels]:
    """The labels of a folder, written when the context ends without an error."""
    results = Labels()
    yield results
    results.write(folder / LABELS, settings.seed)
