"""Annotations, one object per sample: `.json` holds one list, `.jsonl` a line of each, `.csv` a row
of texts under the names of the first one.

Entries are kept as text and parsed anew when asked for (microseconds each): millions of dicts would
fill the memory of every worker process, since reading a Python object in a forked process copies
its page. With an index folder the texts lie in a file of their own, made once for all ranks and
runs, which is mapped into memory and shared by all processes that read it.
"""

import csv
import io
import json
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.loading.feature_cache import Arrays, cache_key, cached, mapped
from shared.data.readers.files import nested_too_deep, open_data, read_text, refusing, shortened
from shared.data.readers.json_lists import MalformedError, list_items
from shared.files import parse_json

Annotation = dict[str, Any]
_BRACKETS = 50  # of an entry, beyond which its depth is worth a look
_DECODER = json.JSONDecoder()
_VERSION = 1  # of index files; rises with every change of what is in them or of what judges entries


class Part(NamedTuple):
    """The N entries of a file: their texts one behind another, `data` (bytes,) uint8, and where
    each ends, `ends` (N,) int64; which of them a task can't use, `bad` (N,) bool; the number of
    different `pictures` of the others, (1,). `origin` is the index file that the arrays lie in."""

    path: Path
    origin: Path | None
    data: NDArray[np.uint8]
    ends: NDArray[np.int64]
    bad: NDArray[np.bool_]
    pictures: NDArray[np.int64]

    def __reduce__(self) -> Any:
        """Worker processes that aren't forked map the file again."""
        if self.origin is not None:
            return _of_index, (self.path, self.origin)
        return Part, tuple(self)


@dataclass(frozen=True)
class Reading:
    """How annotations are read.

    `required`: keys of every entry and their types, e.g. `{"caption": str | list[str]}`.
    `pictures` gives the paths of the pictures of an entry of a file, or None if the task can't use
    it; what it depends on stands in `settings`, JSON values, by which index files in `folder` are
    told apart. None keeps no such files.
    """

    required: Mapping[str, Any]
    pictures: Callable[[Annotation, Path], Sequence[str] | None] = lambda entry, file: ()
    folder: str | Path | None = None
    settings: Any = None


class Annotations:
    """Objects of JSON files, a sequence."""

    def __init__(self, parts: Sequence[Part], required: Mapping[str, Any] | None = None) -> None:
        self._parts, self._required = list(parts), required or {}
        self.starts = np.cumsum([0, *(len(part.ends) for part in parts)])
        self.pictures = sum(int(part.pictures[0]) for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[Annotation]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Annotation:
        place = range(len(self))[operator.index(index)]
        number = self._part(place)
        part, row = self._parts[number], place - self.starts[number]
        start = 0 if row == 0 else part.ends[row - 1]
        text = part.data[start : part.ends[row]].tobytes()
        if part.origin is None:
            return json.loads(text.decode())
        damaged = f"{part.origin}: damaged, delete it"  # anybody may have written it
        with refusing(damaged):
            entry = parse_json(text)
        _check(entry, self._required, f"{damaged}: entry {row}")
        return entry

    @property
    def bad(self) -> NDArray[np.bool_]:
        """(N,) which entries the task can't use."""
        return np.concatenate([part.bad for part in self._parts])

    def file(self, index: int) -> Path:
        """The file that an entry stands in."""
        return self._parts[self._part(index)].path

    def where(self, index: int) -> str:
        """The file and the number in it of an entry, for messages."""
        part = self._part(index)
        return _where(self._parts[part].path, int(index - self.starts[part]))

    def _part(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1


def read_annotations(
    files: str | Path | Iterable[str | Path], how: Mapping[str, Any] | Reading | None = None
) -> Annotations:
    """Read the objects of one or several files, in order; an error names the file and the entry,
    counted from 0 (`.jsonl`: its line). `how`: see `Reading`, or its `required` alone."""
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(path) for path in files]
    if not paths:
        raise ValueError("no annotation file is given")
    if len(set(paths)) < len(paths):
        raise ValueError(f"an annotation file is given twice: {', '.join(map(str, paths))}")
    reading = how if isinstance(how, Reading) else Reading(how or {})
    return Annotations([_part_of(path, reading) for path in paths], reading.required)


def _part_of(path: Path, how: Reading) -> Part:
    """A file's entries, from its index where there is a good one; a missing one is made."""
    if how.folder is None:
        return Part(path, None, **_read(path, how))
    key = cache_key([path], _VERSION, repr(how.required), how.settings)
    arrays, origin = cached(how.folder, key, partial(_read, path, how))
    with refusing(f"{origin}: damaged, delete it"):
        return Part(path, origin, **arrays)


def _of_index(path: Path, index: Path) -> Part:
    return Part(path, index, **mapped(index))


def _read(path: Path, how: Reading) -> Arrays:
    data, ends, bad = bytearray(), array("q"), bytearray()
    pictures: set[int] = set()
    for number, entry in enumerate(_objects(path)):
        where = _where(path, number)
        _check(entry, how.required, where)
        data += _text(entry, where)
        ends.append(len(data))
        try:
            found = how.pictures(entry, path)
        except DataCorruptError as error:
            raise DataCorruptError(f"{where}: {error}") from error
        bad.append(found is None)
        pictures.update(map(hash, found or ()))
    if not ends:
        raise DataCorruptError(f"{path}: no entries")
    return {
        "data": np.frombuffer(data, np.uint8),
        "ends": np.frombuffer(ends, np.int64),
        "bad": np.frombuffer(bad, bool),
        "pictures": np.array([len(pictures)]),
    }


def _check(entry: Any, required: Mapping[str, Any], where: str) -> None:
    if not isinstance(entry, dict):
        raise DataCorruptError(f"{where} is no object but {shortened(entry)}")
    for key, kind in required.items():
        if key not in entry:
            keys = ", ".join(name if name.isprintable() else repr(name) for name in entry)
            raise DataCorruptError(f"{where} has no {key!r}; its keys: {keys[:200] or 'none'}")
        if not _is(value := entry[key], kind):
            name = kind.__name__ if isinstance(kind, type) else kind
            raise DataCorruptError(f"{where}: {key!r} is {shortened(value)}, expected {name}")


def _text(entry: Annotation, where: str) -> bytes:
    try:
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise DataCorruptError(f"{where}: half a character in its text ({error})") from error
    except RecursionError:
        raise DataCorruptError(f"{where} is nested too deep") from None
    if text.count(b"[") + text.count(b"{") > _BRACKETS and nested_too_deep(entry):
        raise DataCorruptError(f"{where} is nested too deep")
    return text


def _objects(path: Path) -> Iterator[Any]:
    """The parsed entries. Line by line for .jsonl, where only the last line may be blank."""
    if path.suffix == ".csv":
        table = io.StringIO(read_text(path), newline="")
        with refusing(f"{path}: no table", csv.Error):
            yield from csv.DictReader(table, restkey="", strict=True)
        return
    if path.suffix == ".jsonl":
        text = read_text(path)
        lines = text.removesuffix("\n").split("\n") if text else []
        yield from (_parse(line, _where(path, number)) for number, line in enumerate(lines))
        return
    with open_data(path) as file:
        try:
            yield from (value for value, _ in list_items(file, _DECODER))
        except MalformedError as error:
            told = f"{path}: no JSON list of entries, perhaps cut off"
            raise DataCorruptError(f"{told} ({error} at byte {error.place})") from error


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
