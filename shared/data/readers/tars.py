"""Tar shards, which strangers may have made: their members, without unpacking anything."""

import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from shared.data.readers.files import one_line
from shared.files import parse_json

LONGEST_HEADER = 1 << 20  # bytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class DamagedTarError(ValueError):
    """An archive is compressed, cut off or damaged from the byte `place` on."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(f"no tar file, or cut off or damaged at byte {place} ({reason})")
        self.place = place


class _Headers:
    """An archive's file for tarfile, which reads as much of a header as the header asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield what an archive holds but its folders, one at a time; DamagedTarError at its end if it
    is not whole."""
    size, headers, end = os.fstat(file.fileno()).st_size, _Headers(file), 0
    try:
        begin = os.pread(file.fileno(), 6, 0)
        for magic, name in _COMPRESSED.items():
            if begin.startswith(magic):
                told = f"compressed by {name}, so that single samples can't be read"
                raise tarfile.ReadError(f"{told}. Unpack it to a .tar, which is hardly larger")
        with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps them all
                if info.size < 0 or info.offset_data + info.size > size:
                    raise tarfile.ReadError("cut off")
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not info.isdir():
                    yield info
        # tarfile takes a damaged header for the end of the archive.
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no mark of an archive's end")
    except Exception as error:  # a damaged archive can raise nearly anything
        raise DamagedTarError(one_line(error) or type(error).__name__, end) from error


def is_special(info: tarfile.TarInfo) -> bool:
    """Whether a member is a link, a device or another thing that no data set has."""
    return not info.isreg() or info.issparse()


def key_of(name: str) -> tuple[str, str]:
    """The key of a member's sample, which ends at the first dot of the file name, and the suffix in
    small letters."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def json_object(content: str | bytes) -> dict[str, Any]:
    """The JSON object, or an empty one for anything else."""
    try:
        value = parse_json(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
