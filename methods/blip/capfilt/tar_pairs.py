"""Pairs in tar shards, as webdataset and img2dataset write them; no table of a shard is kept.

A sample is the members of one key that follow one another: an image, and its text in a .txt, or
under "caption" in a .json. The output has a shard of the same name for each that keeps a pair, and
a sample for each text: its key is the old one with "-web" or "-synthetic" behind, because a reader
refuses two samples of one key, and no other two keys can become equal by that.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from methods.blip.capfilt.records import (
    LONGEST_ENTRY,
    Place,
    Record,
    Write,
    decoded,
    name_fault,
    texts_of,
)
from methods.blip.capfilt.settings import CapFiltError
from shared.data.readers.files import one_line, open_data, shortened
from shared.files import parse_json, sync

SUFFIXES = ("jpg", "jpeg", "png", "webp")
_MOST_FILES = 100  # of a sample
_ZEROS = bytes(tarfile.BLOCKSIZE)  # the end of an archive begins so


class Member(NamedTuple):
    """A file of a shard; `fault` says why it is none, and `lost` that nothing behind it is read."""

    key: str
    suffix: str = ""
    place: Place = Place("")
    fault: str = ""
    lost: int = 0  # bytes


class TarPairs:
    kind, output, copies = "tar shards", "pairs", True
    root: str | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        names = [path.name for path in paths]
        if twice := {name for name in names if names.count(name) > 1}:
            said = f"two shards are called {min(twice)}, and the output has one of each name"
            raise CapFiltError(f"{said}: work on the folders one after the other")
        self._sizes = []
        for path in paths:
            with open_data(path) as file:
                self._sizes.append(os.fstat(file.fileno()).st_size)
        self.size: int | None = sum(self._sizes)

    def describe(self) -> dict[str, Any]:
        files = zip(self._paths, self._sizes, strict=True)
        sizes = [f"{size} {path.name}\n" for path, size in files]
        digest = hashlib.sha256("".join(sizes).encode("utf-8", "surrogateescape")).hexdigest()
        return {"kind": self.kind, "files": len(sizes), "bytes": self.size, "sha256": digest}

    def records(self) -> Iterator[Record]:
        before = 0
        for path, size in zip(self._paths, self._sizes, strict=True):
            with open_data(path) as file:
                for key, group in groupby(_members(path, file, size), lambda found: found.key):
                    yield self._record(path.name, key, group, file, before)
            before += size

    def _record(
        self, shard: str, key: str, group: Iterator[Member], file: BinaryIO, before: int
    ) -> Record:
        name, members = f"{shard}/{key}", list(islice(group, _MOST_FILES))
        last = members[-1]
        end = before + last.place.offset + (last.place.size or 0)
        fault = next((member.fault for member in members if member.fault), "")
        places = {member.suffix: member.place for member in members}
        images = [suffix for suffix in SUFFIXES if suffix in places]
        if not fault and len(places) < len(members):
            fault = "twice: two files of one kind for its key"
        if not fault and len(images) != 1:
            fault = f"twice: {', '.join(images)}" if images else "no file: no image in its sample"
        if fault:
            lost = last.lost / max(1, self.size or 0)
            return Record(name, fault=fault, lost=lost, end=end)
        texts, text_fault = texts_of(_caption(places, file))
        files = {suffix: place for suffix, place in places.items() if suffix in ("txt", "json")}
        content = (images[0], files)
        return Record(name, texts, places[images[0]], "", text_fault, content, end=end)

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Write]:
        archive: tarfile.TarFile | None = None
        current = ""
        with whole_folder(folder / self.output) as target:

            def add(name: str, content: bytes) -> None:
                assert archive is not None
                info = tarfile.TarInfo(name)  # of no time and no owner
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                _forget(archive)

            def write(record: Record, origin: str, text: str, image: bytes) -> None:
                nonlocal archive, current
                shard, _, key = record.name.partition("/")
                if archive is None or current != shard:
                    if archive is not None:
                        archive.close()
                    current = shard
                    archive = tarfile.TarFile(str(target / shard), "x", format=tarfile.PAX_FORMAT)
                suffix, files = record.content
                add(f"{key}-{origin}.{suffix}", image)
                if "json" in files:
                    value = _object(_read(files["json"])) | {"caption": text}
                    add(f"{key}-{origin}.json", json.dumps(value).encode())
                if "txt" in files or "json" not in files:
                    add(f"{key}-{origin}.txt", text.encode())

            yield write
            if archive is not None:
                archive.close()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of `path` if no error ends the context."""
    remains = path.parent.glob(f".{path.name}.*.tmp")
    for old in remains:  # of a killed process; nobody else writes here
        shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        if path.is_symlink():
            raise CapFiltError(f"{path} is a link: remove it")
        if path.exists():
            path.rename(f"{temporary}.old.tmp")
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(f"{temporary}.old.tmp", ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _forget(archive: tarfile.TarFile) -> None:
    """Drop the list of members that tarfile keeps."""
    archive.members.clear()  # type: ignore[attr-defined]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Headers:
    """An archive's file for tarfile, which reads as much of a header as the header asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if size > LONGEST_ENTRY:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(path: Path, file: BinaryIO, size: int) -> Iterator[Member]:
    """The files of a shard; the last one has a fault if the shard is damaged or cut off."""
    end, number, problem = 0, 0, ""
    head = os.pread(file.fileno(), 6, 0)
    if head[:2] == b"\x1f\x8b" or head.startswith((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        problem = "it is compressed"
    try:
        if not problem:
            headers: Any = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    _forget(archive)
                    data, length = info.offset_data, info.size
                    if length < 0 or data + length > size:
                        raise tarfile.ReadError("cut off")
                    end = data + -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    number += 1
                    if not info.isdir():
                        yield _member(info, Place(str(path), data, length))
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != _ZEROS:
                problem = "no mark of an archive's end"
    except Exception as error:  # a damaged archive can raise nearly anything
        problem = one_line(error) or type(error).__name__
    if problem:
        said = f"damaged shard: {problem} at byte {end}"
        yield Member(f"behind member {number}", "", Place(str(path), end), said, size - end)


def _member(info: tarfile.TarInfo, place: Place) -> Member:
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    fault = name_fault(info.name)
    if not fault and ".." in info.name.split("/"):
        fault = f"outside: {shortened(info.name)} goes up"
    if not fault and (not info.isreg() or info.issparse()):
        fault = "outside: a link or another special member"
    return Member(key, suffix.lower(), place, fault)


def _read(place: Place) -> bytes:
    with open_data(place.path) as file:
        return os.pread(file.fileno(), place.size or 0, place.offset)


def _caption(places: dict[str, Place], file: BinaryIO) -> Any:
    """What a sample's .txt says, else its .json; None if there is neither."""
    for suffix in ("txt", "json"):
        if suffix in places:
            _, offset, size = places[suffix]
            if (size or 0) > LONGEST_ENTRY:
                continue
            content = os.pread(file.fileno(), size or 0, offset)
            if suffix == "txt":
                return decoded(content).strip()
            return _object(content).get("caption")
    return None


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object, or an empty one for anything else."""
    with suppress(ValueError):
        value = parse_json(decoded(content))
        if isinstance(value, dict):
            return value
    return {}
