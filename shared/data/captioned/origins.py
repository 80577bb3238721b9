"""What a file of a model, a vocabulary or boxes was, told by its name and checksum."""

import hashlib
import os
from pathlib import Path

from shared.data.errors import WorkError
from shared.files import open_regular


def origin_of(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a file, or of the names and files in a folder."""
    try:
        if not path.is_dir():
            return {"name": path.name, "sha256": _digest(path)}
        files = sorted(file for file in path.iterdir() if file.is_file())
        listing = "".join(f"{_digest(file)} {file.name}\n" for file in files)
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror}") from None
    return {"name": path.resolve().name, "sha256": hashlib.sha256(os.fsencode(listing)).hexdigest()}


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
