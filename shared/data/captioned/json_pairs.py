"""Pairs in JSON, one list (.json) or an object a line (.jsonl), with images below a root.

Neither is held in memory: a list is read by pieces, since files of web pairs have gigabytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shared.data.captioned import records
from shared.data.captioned.records import LONGEST_ENTRY, Place, Record, Write
from shared.data.errors import WorkError
from shared.data.readers.files import nested_too_deep, one_line, open_data, shortened
from shared.data.readers.json_lists import MalformedError, list_items
from shared.files import replacing


class _NotJson:
    """Stands for NaN and for a number of too many digits; json.dumps refuses it."""

    def __repr__(self) -> str:
        return "a number that JSON does not have"


_DECODER = json.JSONDecoder(
    parse_int=lambda digits: int(digits) if len(digits) <= 400 else _NotJson(),
    parse_constant=lambda name: _NotJson(),
)


class JsonPairs:
    """Entries {image, caption: text or list of texts, ...}, of which all keys are kept."""

    copies = False

    def __init__(self, path: Path, root: Path) -> None:
        self._path, self.root, self._lines = path, str(root), path.suffix == ".jsonl"
        self.kind, self.output = "json lines" if self._lines else "json list", f"pairs{path.suffix}"
        with open_data(path) as file:
            self.size = os.fstat(file.fileno()).st_size

    def describe(self) -> dict[str, Any]:
        with open_data(self._path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"kind": self.kind, "files": 1, "bytes": self.size, "sha256": digest}

    def records(self) -> Iterator[Record]:
        with open_data(self._path) as file:
            yield from self._of_lines(file) if self._lines else self._of_list(file)

    def _of_lines(self, file: BinaryIO) -> Iterator[Record]:
        number = end = 0
        while line := file.readline(LONGEST_ENTRY + 1):
            number, end = number + 1, end + len(line)
            where, long = f"{self._path.name}, line {number}", len(line) > LONGEST_ENTRY
            while long and line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_ENTRY)
                end += len(line)
            if long:
                yield Record(where, fault=f"too long: more than {LONGEST_ENTRY} bytes", end=end)
            elif line.strip():
                try:
                    value = _DECODER.decode(records.decoded(line))
                except (ValueError, RecursionError) as error:
                    yield Record(where, fault=f"no JSON: {one_line(error)}", end=end)
                else:
                    yield self._record(value, where, end)

    def _of_list(self, file: BinaryIO) -> Iterator[Record]:
        number = 0
        try:
            for value, end in list_items(file, _DECODER):
                yield self._record(value, f"{self._path.name}, entry {number}", end)
                number += 1
        except MalformedError as error:
            if not number:
                said = f"{self._path} is no list of entries ({error})"
                raise WorkError(f"{said}: give a list, or .jsonl, an object a line") from None
            lost = 1 - error.place / max(1, self.size)
            said = f"no JSON: {error}; the last {lost:.1%} of the file, from byte {error.place} on"
            where = f"{self._path.name}, entry {number}"
            yield Record(where, fault=said, lost=lost, end=self.size)

    def _record(self, value: Any, where: str, end: int) -> Record:
        if not isinstance(value, dict):
            return Record(where, fault=f"no object: {shortened(value)}", end=end)
        if not isinstance(name := value.get("image"), str):
            return Record(where, fault=f"no image named: {shortened(name)}", end=end)
        if fault := records.name_fault(name) or _unwritable(value | {"caption": ""}):
            return Record(where, fault=fault, end=end)
        texts, fault = records.texts_of(value.get("caption"))
        image = Place(os.path.join(self.root, name))
        return Record(name, texts, image, text_fault=fault, content=value, end=end)

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Write]:
        begin, between, end = (b"", b"", b"") if self._lines else (b"[\n", b",\n", b"\n]\n")
        with replacing(folder / self.output) as file:

            def write(record: Record, origin: str, text: str, image: bytes) -> None:
                line = json.dumps(record.content | {"caption": text}, ensure_ascii=False)
                file.write(between if file.tell() else begin)
                file.write(line.encode() + (b"\n" if self._lines else b""))

            yield write
            file.write(end if file.tell() else (begin + end).replace(b"\n\n", b"\n"))


def _unwritable(value: dict[str, Any]) -> str:
    """Why an object cannot be written to the output as it is, or ""."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "not UTF-8: one of its values"
    except (TypeError, ValueError):
        return "no JSON: NaN, or a number of too many digits"
    except RecursionError:
        return "no JSON: nested too deep"
    deep = text.count(b"[") + text.count(b"{") > 50 and nested_too_deep(value)
    return "no JSON: nested too deep" if deep else ""
