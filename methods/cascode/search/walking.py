"""Which files of a folder are read, and how: no link is followed, nothing is ever executed.

Paths are relative to the root, with "/" between folders, everywhere in the tool.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from methods.cascode.extraction import language_of
from shared.files import UnsafeFileError, open_regular

VENDORED = {
    "_vendor", "bower_components", "dist-packages", "extern", "externals", "node_modules",
    "site-packages", "third-party", "third_party", "thirdparty", "vendor", "vendored",
}  # fmt: skip
VENV = "pyvenv.cfg"  # in the folder of a virtual environment
LONGEST_LINE = 20_000  # characters; longer ones are written by programs


class SkippedError(Exception):
    """A file is left out; the message is the reason, as it is counted under."""


def walk(root: Path, leave_out: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the path of each code file below `root`, resolved, and why not to read it, or None;
    also in hidden folders and those of other people's code, so that they count."""
    pending: list[tuple[Path, str | None]] = [(root, None)]
    while pending:
        folder, reason = pending.pop()
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            yield _relative(folder, root), _reason(error)
            continue
        if folder != root and any(entry.name == VENV for entry in entries):
            reason = "vendored"
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                if language_of(entry.name) is not None or os.path.isdir(entry.path):
                    yield _relative(path, root), reason or "symbolic link"
            elif entry.is_dir(follow_symlinks=False):
                if path != leave_out:
                    vendored = "vendored" if entry.name.lower() in VENDORED else None
                    hidden = "hidden" if entry.name.startswith(".") else None
                    pending.append((path, reason or hidden or vendored))
            elif language_of(entry.name) is not None:
                minified = "minified" if ".min." in entry.name else None
                yield _relative(path, root), reason or minified


def read_bytes(root: Path, path: str, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes that lies below `root`, else SkippedError.

    The path may come from an index, and folders may have become links since: it is checked anew.
    """
    parts = PurePosixPath(path)
    full = root / path
    try:
        if parts.is_absolute() or ".." in parts.parts or os.path.realpath(full) != str(full):
            raise SkippedError("symbolic link")
        with open_regular(full, follow_links=False) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(limit, size) + 1)  # so much memory is taken at once
    except UnsafeFileError:
        raise SkippedError("no regular file") from None
    except OSError as error:
        raise SkippedError(_reason(error)) from error
    except ValueError:  # a name that no file can have
        raise SkippedError("unreadable") from None
    if len(content) > limit:
        raise SkippedError("too large")
    return content


def decode(content: bytes) -> tuple[str, bool]:
    """Text with "\\n" as line ends, and whether it was no UTF-8; then each byte is a character.
    SkippedError if it is binary, or has lines that nobody wrote."""
    if b"\0" in content:
        raise SkippedError("binary")
    try:
        text, foreign = content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, foreign = content.decode("latin-1"), True
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if max(map(len, text.split("\n"))) > LONGEST_LINE:
        raise SkippedError("minified")
    return text, foreign


def digest(content: bytes) -> str:
    """32 hex digits that name a content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _reason(error: OSError) -> str:
    return "vanished" if isinstance(error, FileNotFoundError) else "unreadable"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
