"""Which files of a folder are read, and how: no link is followed, nothing is ever executed.

Paths are relative to the root, with "/" between folders, everywhere in the tool.
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from methods.cascode.extraction import language_of
from methods.cascode.extraction.documents import document_language_of
from shared.files import UnsafeFileError, open_regular

VENDORED = {
    "_vendor", "bower_components", "dist-packages", "extern", "externals", "node_modules",
    "site-packages", "third-party", "third_party", "thirdparty", "vendor", "vendored",
}  # fmt: skip
VENV = "pyvenv.cfg"  # in the folder of a virtual environment
IGNORE = ".gitignore", ".tenfoldignore"  # the later one has the last word
LONGEST_LINE = 20_000  # characters; longer ones are written by programs
OTHER = "of other kinds"
_MOST_STARS, _MOST_RULES = 2, 2_000  # of a rule, and of a file: more could take hours to match
_MOST_BYTES, _LONGEST_RULE = 200_000, 500


class SkippedError(Exception):
    """A file is left out; the message is the reason, as it is counted under."""


class Found(NamedTuple):
    """A file, or a folder that is not entered."""

    path: str
    reason: str | None  # why it is not read
    stamp: str = ""  # size and times; a file with another one may have changed


@dataclass(frozen=True)
class Scope:
    """What of a root is wanted: these folders below it, "" for all, and in them the files that have
    one of the patterns of `include`, if there are any, and none of `exclude`; written as for git.
    """

    folders: tuple[str, ...] = ("",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def reason(self, path: str, folder: bool) -> str | None:
        """Why a file, or a folder as a whole, is not wanted."""
        if self.exclude and _spec(self.exclude).match_file(f"{path}/" if folder else path):
            return "excluded"
        unwanted = self.include and not folder and not _spec(self.include).match_file(path)
        return "not included" if unwanted else None


@dataclass(frozen=True)
class _Rules:
    """What the files of rules on the way from the root say; a deeper one has the last word."""

    levels: tuple[tuple[str, GitIgnoreSpec], ...] = ()

    def deeper(self, root: Path, folder: str, names: Collection[str]) -> "_Rules":
        """The rules that hold in a folder which has files of these names."""
        lines: list[str] = []
        for name in (name for name in IGNORE if name in names):
            try:
                content = read_bytes(root, f"{folder}{name}", _MOST_BYTES)
            except SkippedError:
                continue
            lines += content.decode("utf-8", "replace").splitlines()[:_MOST_RULES]
        return _Rules((*self.levels, (folder, _spec(tuple(lines))))) if lines else self

    def ignore(self, path: str) -> bool:
        """Whether a file, or a folder, which ends in "/", is left out."""
        for folder, spec in reversed(self.levels):
            if (decided := spec.check_file(path.removeprefix(folder)).include) is not None:
                return decided
        return False


def walk(root: Path, leave_out: Path, scope: Scope | None = None) -> Iterator[Found]:
    """Yield each file below `root`, which is resolved, with why not to read it, or None; hidden and
    ignored folders, links to folders and those of other people's code as one, so that they count.
    """
    scope = scope or Scope()
    pending = [(root / folder, _Rules()) for folder in scope.folders]
    while pending:
        folder, rules = pending.pop()
        inside = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            yield Found(inside[:-1], _reason(error))
            continue
        names = {entry.name for entry in entries}
        if VENV in names and folder != root:
            yield Found(inside[:-1], "vendored")
            continue
        rules = rules.deeper(root, inside, names)
        for entry in entries:
            path = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if folder / entry.name == leave_out:
                    continue
                if reason := _of_folder(entry.name, path, rules, scope):
                    yield Found(path, reason)
                else:
                    pending.append((folder / entry.name, rules))
            elif (reason := _of_file(entry, path, rules, scope)) is None:
                try:
                    yield Found(path, None, _stamp(entry.stat(follow_symlinks=False)))
                except OSError as error:
                    yield Found(path, _reason(error))
            else:
                yield Found(path, reason)


def language_at(path: str) -> str | None:
    """The language of a file of code, or of documentation or configuration; None of another."""
    return language_of(path) or document_language_of(path)


def _of_folder(name: str, path: str, rules: _Rules, scope: Scope) -> str | None:
    """Why a folder is not entered."""
    if name.startswith("."):
        return "hidden"
    if name.lower() in VENDORED:
        return "vendored"
    return "ignored" if rules.ignore(f"{path}/") else scope.reason(path, folder=True)


def _of_file(entry: "os.DirEntry[str]", path: str, rules: _Rules, scope: Scope) -> str | None:
    """Why a file is not read, or a link, which never is."""
    known = language_at(entry.name) is not None
    if entry.is_symlink():
        return "symbolic link" if known or os.path.isdir(entry.path) else OTHER
    if not known:
        return OTHER
    if ".min." in entry.name:
        return "minified"
    return "ignored" if rules.ignore(path) else scope.reason(path, folder=False)


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


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@lru_cache(maxsize=1_000)
def _spec(lines: tuple[str, ...]) -> GitIgnoreSpec:
    """The rules in these lines; what is no rule is passed over, as git does."""
    return GitIgnoreSpec.from_lines(line for line in lines if _is_rule(line))


@lru_cache(maxsize=10_000)
def _is_rule(line: str) -> bool:
    stars = line.replace("**/", "").replace("/**", "").count("*")
    if stars > _MOST_STARS or len(line) > _LONGEST_RULE:
        return False
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
