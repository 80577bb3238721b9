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

from shared.data.captioned.records import (
    LONGEST_ENTRY,
    Place,
    Record,
    Write,
    decoded,
    name_fault,
    texts_of,
)
from shared.data.errors import WorkError
from shared.data.readers.files import one_line, open_data, shortened
from shared.files import parse_json, sync

SUFFIXES = ("jpg", "jpeg", "png", "webp")
_MOST_FILES = 100  # of a sample
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """A file of a shard; `fault` says why it is none, and `lost` that nothing behind it is read."""

    key: str
    suffix: str
    place: Place
    fault: str = ""
    lost: int = 0  # bytes


class TarPairs:
    kind, output, root, copies = "tar shards", "pairs", None, True

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [path.name for path in paths]
        if twice := {name for name in names if names.count(name) > 1}:
            said = f"two shards are called {min(twice)}, and the output has one of each name"
            raise WorkError(f"{said}: work on the folders one after the other")
        self._shards: list[tuple[Path, int]] = []
        for path in paths:
            with open_data(path) as file:
                self._shards.append((path, os.fstat(file.fileno()).st_size))
        self.size = sum(size for _, size in self._shards)

    def describe(self) -> dict[str, Any]:
        listing = "".join(f"{size} {path.name}\n" for path, size in self._shards)
        digest = hashlib.sha256(os.fsencode(listing)).hexdigest()
        about = {"kind": self.kind, "files": len(self._shards), "bytes": self.size}
        return about | {"sha256": digest}

    def records(self) -> Iterator[Record]:
        before = 0
        for path, size in self._shards:
            with open_data(path) as file:
                for key, group in groupby(_members(path, file, size), lambda found: found.key):
                    members = list(islice(group, _MOST_FILES))
                    yield self._record(f"{path.name}/{key}", members, file, before)
            before += size

    def _record(self, name: str, members: list[Member], file: BinaryIO, before: int) -> Record:
        last, places = members[-1], {member.suffix: member.place for member in members}
        end = before + last.place.offset + (last.place.size or 0)
        images = [suffix for suffix in SUFFIXES if suffix in places]
        fault = next((member.fault for member in members if member.fault), "")
        if not fault and (len(images) > 1 or len(places) < len(members)):
            fault = "twice: two files of one kind for its key"
        if fault or not images:
            fault, lost = fault or "no file: no image in its sample", last.lost / max(1, self.size)
            return Record(name, fault=fault, lost=lost, end=end)
        texts, text_fault = texts_of(_caption(places, file))
        files = {suffix: place for suffix, place in places.items() if suffix in ("txt", "json")}
        content = (images[0], files)
        return Record(name, texts, places[images[0]], "", text_fault, content, end=end)

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Write]:
        archive, current = None, ""
        with whole_folder(folder / self.output) as target:

            def write(record: Record, origin: str, text: str, image: bytes) -> None:
                nonlocal archive, current
                shard, _, key = record.name.partition("/")
                if archive is None or current != shard:
                    if archive is not None:
                        archive.close()
                    current = shard
                    archive = tarfile.TarFile(str(target / shard), "x", format=tarfile.PAX_FORMAT)
                suffix, files = record.content
                parts = {suffix: image}
                if "json" in files:
                    value = _object(_read(files["json"])) | {"caption": text}
                    parts["json"] = json.dumps(value).encode()
                if "txt" in files or "json" not in files:
                    parts["txt"] = text.encode()
                for suffix, content in parts.items():
                    info = tarfile.TarInfo(f"{key}-{origin}.{suffix}")  # of no time and no owner
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                    _forget(archive)

            yield write
            if archive is not None:
                archive.close()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of `path` if no error ends the context."""
    for remains in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process
        shutil.rmtree(remains, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    temporary.chmod(path.parent.stat().st_mode)
    try:
        yield temporary
        os.sync()  # one call for what may be millions of files
        if path.is_symlink():
            raise WorkError(f"{path} is a link: remove it")
        if path.exists():
            path.rename(f"{temporary}.old.tmp")
        temporary.rename(path)
        sync(path.parent)
    finally:
        for remains in path.parent.glob(f"{temporary.name}*"):
            shutil.rmtree(remains, ignore_errors=True)


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
    end, number, headers = 0, 0, _Headers(file)
    try:
        if os.pread(file.fileno(), 6, 0).startswith(_COMPRESSED):
            raise tarfile.ReadError("it is compressed")
        with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                _forget(archive)
                if info.size < 0 or info.offset_data + info.size > size:
                    raise tarfile.ReadError("cut off")
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                number += 1
                if not info.isdir():
                    yield _member(info, Place(str(path), info.offset_data, info.size))
        # tarfile takes a damaged header for the end.
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no mark of an archive's end")
    except Exception as error:  # a damaged archive can raise nearly anything
        said = f"damaged shard: {one_line(error) or type(error).__name__} at byte {end}"
        yield Member(f"behind member {number}", "", Place(str(path), end), said, size - end)


def _member(info: tarfile.TarInfo, place: Place) -> Member:
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    fault = name_fault(info.name)
    if not fault and ".." in info.name.split("/"):
        fault = f"outside: {shortened(info.name)} goes up"
    if not fault and (not info.isreg() or info.issparse()):
        fault = "outside: a link or another special member"
    return Member(f"{folder}/{stem}" if folder else stem, suffix.lower(), place, fault)


def _forget(archive: tarfile.TarFile) -> None:
    """Drop the list of members that tarfile keeps."""
    archive.members.clear()  # type: ignore[attr-defined]


def _read(place: Place) -> bytes:
    with open_data(place.path) as file:
        return os.pread(file.fileno(), place.size or 0, place.offset)


def _caption(places: dict[str, Place], file: BinaryIO) -> Any:
    """What a sample's .txt says, else its .json; None if there is neither."""
    for suffix in ("txt", "json"):
        _, offset, size = places.get(suffix, Place(""))
        if size is not None and size <= LONGEST_ENTRY:
            content = os.pread(file.fileno(), size, offset)
            return decoded(content).strip() if suffix == "txt" else _object(content).get("caption")
    return None


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object, or an empty one for anything else."""
    with suppress(ValueError):
        value = parse_json(decoded(content))
        if isinstance(value, dict):
            return value
    return {}
