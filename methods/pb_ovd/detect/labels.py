"""labels.json: images with their pseudo boxes, in COCO's form."""

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
IN_MEMORY = 1 << 24  # bytes of annotations, which are written behind the images
Image = tuple[str, str, tuple[int, int], list[PseudoObject]]


class Labels:
    """Counts mentions and boxes, and keeps the objects of images, which several entries may name,
    in a database on disk until all are known.

    The official code keeps only those of an image's last entry.
    """

    def __init__(self) -> None:
        self._mentions = self._silent = 0
        self._boxes: Counter[str] = Counter()  # by name, before one is chosen
        self._labels = CocoLabels()
        self._rows = sqlite3.connect("")  # of no name: deleted with the connection
        columns = "name TEXT, key TEXT, size TEXT, objects TEXT"
        self._rows.execute(f"CREATE TABLE entries ({columns})")
        self.close = self._rows.close

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
        told = record.name, record.key, json.dumps(row["size"]), json.dumps(objects)
        self._rows.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", told)
        return Told(group=(0, "boxes for words"), shown=(record.texts, objects))

    def write(self, path: Path, seed: int) -> None:
        """Write images, annotations and categories, none of them held in memory but the last."""
        with replacing(path) as file, tempfile.SpooledTemporaryFile(IN_MEMORY) as behind:
            file.write(b'{"images": [')
            for name, key, size, objects in self._images():
                groups = names_of(objects)
                numbers = draws(seed, key, "pseudo boxes", len(groups))
                image, annotations = self._labels.add(name, size, groups, numbers)
                file.write((b",\n" if image["id"] else b"\n") + packed(image).strip())
                for annotation in annotations:
                    behind.write(b",\n" if annotation["id"] else b"\n")
                    behind.write(packed(annotation).strip())
            file.write(b'],\n"annotations": [')
            behind.seek(0)
            shutil.copyfileobj(behind, file)
            categories = packed(self._labels.categories).strip()
            file.write(b'],\n"categories": ' + categories + b"}\n")

    def _images(self) -> Iterator[Image]:
        """Yield name, key, size and objects of each image in the order of first entries; the key is
        that of the first one."""
        self._rows.execute("CREATE INDEX of_image ON entries (name)")
        first = "SELECT min(rowid) AS r, name FROM entries GROUP BY name ORDER BY r"
        for _, name in self._rows.execute(first):
            found = self._rows.execute(
                "SELECT key, size, objects FROM entries WHERE name = ? ORDER BY rowid", (name,)
            ).fetchall()
            (key, size, _), parts = found[0], [json.loads(objects) for _, _, objects in found]
            height, width = json.loads(size)
            objects = [PseudoObject(*one) for part in parts for one in part]
            yield name, key, (height, width), objects

    def facts(self) -> dict[str, Any]:
        return {
            "entries_without_mention": self._silent,
            "mentions": self._mentions,
            "boxes": self._boxes.total(),
            "images": self._labels.images,
            "annotations": self._labels.annotations,
            "classes": {name: self._boxes[name] for name in self._labels.numbers},
        }


@contextmanager
def labels(folder: Path, source: Source, settings: Settings) -> Iterator[Labels]:
    """The labels of a folder, written when the context ends without an error."""
    with closing(Labels()) as results:
        yield results
        results.write(folder / LABELS, settings.seed)
