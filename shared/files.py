"""Files that somebody else may have put there: nothing is waited for, no link is written through.

Readers open by `open_regular` and parse by `read_json`, which no pipe holds up and which end in
`OSError` or `ValueError` whatever lies there. Writers write by `replacing`: whole or not at all.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # file systems of some clusters
_HELD = {errno.EACCES, errno.EAGAIN}


class UnsafeFileError(OSError):
    """Something other than a file or folder of its own lies at a path; `strerror` says what."""


class LockedError(RuntimeError):
    """Another process holds a lock; the message says which."""


def open_regular(path: str | os.PathLike[str], follow_links: bool = True) -> BufferedReader:
    """Open a file for reading; what would block or never end (a pipe, device, socket or folder), or
    a link unless links are followed, is an UnsafeFileError, what cannot be read an OSError."""
    return open(_open(path, os.O_RDONLY | (0 if follow_links else os.O_NOFOLLOW)), "rb")


def open_own(path: str | os.PathLike[str]) -> FileIO:
    """Open, or make, a file of our own to read and append to; UnsafeFileError if it is a link."""
    return FileIO(_open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW), "r+b")


def _open(path: str | os.PathLike[str], flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what = "is a link, which is not followed"
            raise UnsafeFileError(errno.ELOOP, what, os.fspath(path)) from None
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    what = "is a pipe, a device, a socket or a folder, not a file"
    raise UnsafeFileError(errno.EINVAL, what, os.fspath(path))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Content of a JSON file in UTF-8, with or without a byte order mark; OSError or ValueError."""
    with open_regular(path) as file:
        return parse_json(file.read())


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text; ValueError if it is none, no UTF-8, or nested too deep."""
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write, which takes the place of `path` when all is written and synced.

    If anything fails, what was at `path` stays. A link there is replaced, not followed. A killed
    process leaves a `.NAME.*.tmp` for `remove_unfinished`.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill, which gets the name `path` when all is written.

    FileExistsError if something has that name; if anything fails, nothing is left.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, "is there already", str(target))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Write a JSON file, whole or not at all; on one line with `indent` None."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=indent).encode() + b"\n")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody else writes to now."""
    for path in folder.glob(".*.tmp"):
        if path.is_symlink() or path.is_file():
            path.unlink()


def own_folder(path: Path, mode: int = 0o777) -> Path:
    """Make a folder, or take the one there is, and return `path`; UnsafeFileError of a link."""
    if path.is_symlink():
        raise UnsafeFileError(errno.ELOOP, "is a link: name the folder that it leads to", str(path))
    path.mkdir(mode, parents=True, exist_ok=True)
    return path


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class OwnFileHandler(logging.FileHandler):
    """A log file in a folder of its own; a link in either place is refused."""

    def _open(self) -> TextIOWrapper:
        own_folder(Path(self.baseFilename).parent)
        return TextIOWrapper(BufferedWriter(open_own(self.baseFilename)), encoding="utf-8")


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, until the process ends at the latest; what it forks does not hold it.
    LockedError if another process has it, unless we `wait`; UnsafeFileError of a link."""
    with open_own(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _HELD:
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                raise LockedError(holder) from None
            if error.errno not in _UNSUPPORTED:
                raise
            said = f"{path.parent}: this file system knows no locks; start one command at a time"
            warnings.warn(said, stacklevel=3)
        file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
        yield
