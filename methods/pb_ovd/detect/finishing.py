"""From finished journals to the outputs: each whole or not at all.

labels.json        images with their pseudo boxes, in COCO's form
unusable.jsonl     every entry that could not be used, wholly or in part, and why
card.md, card.json what was done; card.json comes last
"""

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from methods.pb_ovd.detect import card
from methods.pb_ovd.detect.labelling import draws
from methods.pb_ovd.detect.settings import Settings
from methods.pb_ovd.pseudo_labels import CocoLabels, PseudoObject, names_of
from shared.data.captioned.records import Record
from shared.data.captioned.working import Job, Row, all_rows
from shared.files import remove_unfinished, replacing, write_json

OUTPUTS = LABELS, UNUSABLE, CARD, CARD_JSON = (
    "labels.json", "unusable.jsonl", "card.md", "card.json",
)  # fmt: skip
IN_MEMORY = 1 << 24  # bytes of annotations, which are written behind the images
Image = tuple[str, str, tuple[int, int], list[PseudoObject]]


class Images:
    """Objects of images that several entries may name, kept in a database on disk.

    The official code keeps only those of an image's last entry.
    """

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")  # of no name: deleted with the connection
        columns = "name TEXT, key TEXT, size TEXT, objects TEXT"
        self._rows.execute(f"CREATE TABLE entries ({columns})")
        self.close = self._rows.close

    def add(self, record: Record, row: Row) -> None:
        told = record.name, record.key, json.dumps(row["size"]), json.dumps(row["objects"])
        self._rows.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", told)

    def __iter__(self) -> Iterator[Image]:
        """Yield name, key, size and objects of each image in the order of first entries; the key is
        that of the first one."""
        self._rows.execute("CREATE INDEX IF NOT EXISTS of_image ON entries (name)")
        first = "SELECT min(rowid) AS r, name FROM entries GROUP BY name ORDER BY r"
        for _, name in self._rows.execute(first):
            found = self._rows.execute(
                "SELECT key, size, objects FROM entries WHERE name = ? ORDER BY rowid", (name,)
            ).fetchall()
            (key, size, _), parts = found[0], [json.loads(objects) for _, _, objects in found]
            height, width = json.loads(size)
            objects = [PseudoObject(*one) for part in parts for one in part]
            yield name, key, (height, width), objects


def finish(
    folder: Path,
    job: Job,
    settings: Settings,
    header: Any,
    journals: Sequence[Path],
    tell: Callable[[int], None] = lambda entries: None,
) -> dict[str, Any]:
    """Write the outputs from journals in the order of their shards, which have all ended; returns
    what the card says."""
    remove_unfinished(folder)
    outcome, state = card.Outcome(), hashlib.sha256()
    with closing(Images()) as images:
        with replacing(folder / UNUSABLE) as file:
            for record, row in all_rows(job, journals):
                fault = job.fault_of(record, row)
                state.update(_packed([record.key, row.get("sha256"), row.get("fault")]))
                if fault:
                    told = {"entry": outcome.entries, "image": record.name, "fault": fault}
                    file.write(_packed(told))
                if row.get("objects"):
                    images.add(record, row)
                outcome.add(record, row, fault)
                tell(outcome.entries)
        labels = write_labels(folder / LABELS, images, settings.seed)
    facts = card.facts(outcome, labels, header, state.hexdigest())
    with replacing(folder / CARD) as file:
        file.write(card.markdown(facts).encode())
    write_json(folder / CARD_JSON, facts)
    return facts


def write_labels(path: Path, images: Images, seed: int) -> CocoLabels:
    """Write images, annotations and categories, none of them held in memory but the last."""
    labels = CocoLabels()
    with replacing(path) as file, tempfile.SpooledTemporaryFile(IN_MEMORY) as behind:
        file.write(b'{"images": [')
        for name, key, size, objects in images:
            groups = names_of(objects)
            numbers = draws(seed, key, "pseudo boxes", len(groups))
            image, annotations = labels.add(name, size, groups, numbers)
            file.write((b",\n" if image["id"] else b"\n") + _packed(image).strip())
            for annotation in annotations:
                behind.write(b",\n" if annotation["id"] else b"\n")
                behind.write(_packed(annotation).strip())
        file.write(b'],\n"annotations": [')
        behind.seek(0)
        shutil.copyfileobj(behind, file)
        file.write(b'],\n"categories": ' + _packed(labels.categories).strip() + b"}\n")
    return labels


def _packed(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
