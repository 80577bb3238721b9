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
from contextlib import contextmanager
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
from shared.data.readers.files import open_data, shortened
from shared.data.readers.tars import DamagedTarError, is_special, json_object, key_of, tar_members
from shared.files import sync

SUFFIXES = ("jpg", "jpeg", "png", "webp")
_MOST_FILES = 100  # of a sample


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
                    value = json_object(decoded(_read(files["json"]))) | {"caption": text}
                    parts["json"] = json.dumps(value).encode()
                if "txt" in files or "json" not in files:
                    parts["txt"] = text.encode()
                for suffix, content in parts.items():
                    info = tarfile.TarInfo(f"{key}-{origin}.{suffix}")  # of no time and no owner
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all

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


def _members(path: Path, file: BinaryIO, size: int) -> Iterator[Member]:
    """The files of a shard; the last one has a fault if the shard is damaged or cut off."""
    number = 0
    try:
        for info in tar_members(file):
            number += 1
            yield _member(info, Place(str(path), info.offset_data, info.size))
    except DamagedTarError as error:
        place = Place(str(path), error.place)
        said, lost = f"damaged shard: {error}", size - error.place
        yield Member(f"behind member {number}", "", place, said, lost)


def _member(info: tarfile.TarInfo, place: Place) -> Member:
    fault = name_fault(info.name)
    if not fault and ".." in info.name.split("/"):
        fault = f"outside: {shortened(info.name)} goes up"
    if not fault and is_special(info):
        fault = "outside: a link or another special member"
    return Member(*key_of(info.name), place, fault)


def _read(place: Place) -> bytes:
    with open_data(place.path) as file:
        return os.pread(file.fileno(), place.size or 0, place.offset)


def _caption(places: dict[str, Place], file: BinaryIO) -> Any:
    """What a sample's .txt says, else its .json; None if there is neither."""
    for suffix in ("txt", "json"):
        _, offset, size = places.get(suffix, Place(""))
        if size is not None and size <= LONGEST_ENTRY:
            content = os.pread(file.fileno(), size, offset)
            text = decoded(content)
            return text.strip() if suffix == "txt" else json_object(text).get("caption")
    return None
