"""Pairs in a folder: an image, and its text in a .txt of the same name beside it.

Paths are sorted by a database on disk, so that a folder of millions needs no memory. The output is
a folder of the same kind with a copy of the image for each text, "-web" or "-synthetic" behind its
name.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.data.captioned import records
from shared.data.captioned.records import LONGEST_ENTRY, Place, Record, Write
from shared.data.captioned.tar_pairs import whole_folder
from shared.data.images import IMAGE_SUFFIXES
from shared.files import open_regular


class FolderPairs:
    kind, output, size, copies = "folder", "pairs", None, True

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        # Of no name: SQLite's own temporary file, deleted with the connection.
        self._paths = sqlite3.connect("")
        self._paths.execute("CREATE TABLE paths (stem BLOB, suffix BLOB, bytes INTEGER)")
        self._paths.executemany("INSERT INTO paths VALUES (?, ?, ?)", self._found())
        self._paths.execute("CREATE INDEX sorted ON paths (stem, suffix)")

    def describe(self) -> dict[str, Any]:
        state, files, total = hashlib.sha256(), 0, 0
        for stem, suffix, size in self._sorted():
            state.update(b"%d %s%s\n" % (size, stem, suffix))
            files, total = files + 1, total + size
        return {"kind": self.kind, "files": files, "bytes": total, "sha256": state.hexdigest()}

    def records(self) -> Iterator[Record]:
        before = None
        for stem, suffix, _ in self._sorted():
            name = os.fsdecode(stem + suffix)
            path = os.path.join(self.root, name)
            fault = records.name_fault(name)
            if stem == before:
                fault = fault or "twice: another image has the same text"
            if fault:
                yield Record(name, fault=fault)
            else:
                texts, text_fault = self._texts(os.path.splitext(path)[0] + ".txt")
                yield Record(name, texts, Place(path), text_fault=text_fault)
            before = stem

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Write]:
        with whole_folder(folder / self.output) as target:

            def write(record: Record, origin: str, text: str, image: bytes) -> None:
                stem, suffix = os.path.splitext(record.name)
                path = target / f"{stem}-{origin}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)
                path.with_suffix(".txt").write_bytes(text.encode())

            yield write

    def _sorted(self) -> Iterator[tuple[bytes, bytes, int]]:
        return self._paths.execute("SELECT * FROM paths ORDER BY stem, suffix")

    def _found(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Stem, suffix and size of each image below the root; linked folders are left out."""
        folders = [""]
        while folders:
            folder = folders.pop()
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
                        stem, suffix = os.path.splitext(os.fsencode(path))
                        yield stem, suffix, entry.stat(follow_symlinks=False).st_size

    def _texts(self, path: str) -> tuple[tuple[str, ...], str]:
        if records.outside(path, self.root):
            return (), "outside: a link to a text leads out of the root"
        try:
            with open_regular(path) as file:
                content = file.read(LONGEST_ENTRY)
        except FileNotFoundError:
            return (), "no text"
        except OSError as error:
            return (), f"unreadable: its text, {error.strerror}"
        return records.texts_of(records.decoded(content).strip())
