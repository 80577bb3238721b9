"""Annotations as JSON, one object per sample: `.json` holds one list, `.jsonl` a line of each."""

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from shared.data.errors import DataCorruptError
from shared.data.readers.files import nested_too_deep, read_json, read_text, shortened
from shared.files import parse_json

Annotation = dict[str, Any]
_BRACKETS = 50  # of an entry, beyond which its depth is worth a look


class Annotations:
    """Objects of JSON files, kept as text and parsed anew when asked for (microseconds each).
    Millions of dicts would fill the memory of every worker process: reading a Python object in a
    forked process copies its page."""

    def __init__(self, parts: Mapping[Path, list[bytes]]) -> None:
        texts = [text for part in parts.values() for text in part]
        self._ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._data = b"".join(texts)
        self._files = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts.values())])

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Annotation]:
        start = 0
        for end in self._ends.tolist():
            yield json.loads(self._data[start:end].decode())
            start = end

    def __getitem__(self, index: int) -> Annotation:
        place = range(len(self))[operator.index(index)]
        start = 0 if place == 0 else self._ends[place - 1]
        return json.loads(self._data[start : self._ends[place]].decode())

    def file(self, index: int) -> Path:
        """The file that an entry stands in."""
        return self._files[self._part(index)]

    def where(self, index: int) -> str:
        """The file and the number in it of an entry, for messages."""
        part = self._part(index)
        return _where(self._files[part], int(index - self._starts[part]))

    def _part(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


def read_annotations(
    files: str | Path | Iterable[str | Path], required: Mapping[str, Any] | None = None
) -> Annotations:
    """Read the objects of one or several files, in order; an error names the file and the entry,
    counted from 0 (`.jsonl`: its line). `required`: keys of every entry and their types, e.g.
    `{"caption": str | list[str]}`.
    """
    paths = [files] if isinstance(files, str | Path) else list(files)
    if not paths:
        raise ValueError("no annotation file is given")
    parts = {Path(path): _read(Path(path), required or {}) for path in paths}
    if len(parts) < len(paths):
        raise ValueError(f"an annotation file is given twice: {', '.join(map(str, paths))}")
    return Annotations(parts)


def _read(path: Path, required: Mapping[str, Any]) -> list[bytes]:
    texts = []
    for number, entry in enumerate(_objects(path)):
        where = _where(path, number)
        if not isinstance(entry, dict):
            raise DataCorruptError(f"{where} is no object but {shortened(entry)}")
        for key, kind in required.items():
            if key not in entry:
                keys = ", ".join(name if name.isprintable() else repr(name) for name in entry)
                raise DataCorruptError(f"{where} has no {key!r}; its keys: {keys[:200] or 'none'}")
            if not _is(value := entry[key], kind):
                name = kind.__name__ if isinstance(kind, type) else kind
                raise DataCorruptError(f"{where}: {key!r} is {shortened(value)}, expected {name}")
        try:
            text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise DataCorruptError(f"{where}: half a character in its text ({error})") from error
        except RecursionError:
            raise DataCorruptError(f"{where} is nested too deep") from None
        if text.count(b"[") + text.count(b"{") > _BRACKETS and nested_too_deep(entry):
            raise DataCorruptError(f"{where} is nested too deep")
        texts.append(text)
    if not texts:
        raise DataCorruptError(f"{path}: no entries")
    return texts


def _objects(path: Path) -> Iterable[Any]:
    """The parsed entries. Line by line for .jsonl, where only the last line may be blank."""
    if path.suffix == ".jsonl":
        text = read_text(path)
        lines = text.removesuffix("\n").split("\n") if text else []
        return (_parse(line, _where(path, number)) for number, line in enumerate(lines))
    content = read_json(path)
    if not isinstance(content, list):
        raise DataCorruptError(f"{path}: expected a list of entries, got {shortened(content)}")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataCorruptError(f"{where}: no JSON ({error}); was it cut off?") from error


def _where(path: Path, number: int) -> str:
    return f"{path}, line {number + 1}" if path.suffix == ".jsonl" else f"{path}, entry {number}"


def _is(value: Any, kind: Any) -> bool:
    """isinstance for classes, unions and lists of them; JSON's true is no number."""
    if get_origin(kind) in (UnionType, Union):
        return any(_is(value, part) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(part, get_args(kind)[0]) for part in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, kind)
