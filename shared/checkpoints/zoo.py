"""`zoo:NAME`, small trained models that come with Tenfold: files of `zoo/` in the repository.

`zoo/SHA256SUMS` lists them, `zoo/NAME.md` is the card of each.
"""

import hashlib
import os
from pathlib import Path

ZOO = Path(__file__).parents[2] / "zoo"
PREFIX, SUFFIX, SUMS = "zoo:", ".safetensors", "SHA256SUMS"


def is_of_zoo(source: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is named as one of the zoo."""
    return os.fspath(source).startswith(PREFIX)


def zoo_file(source: str | os.PathLike[str]) -> Path:
    """The file that `zoo:NAME` names, its checksum verified; FileNotFoundError with the names that
    there are, ValueError of a file that is not as it was shipped."""
    name = os.fspath(source).removeprefix(PREFIX)
    sums = checksums()
    if name not in sums:
        there = ", ".join(f"{PREFIX}{known}" for known in sums) or "it is empty"
        raise FileNotFoundError(f"no {PREFIX}{name} in the zoo ({there})")
    path = ZOO / f"{name}{SUFFIX}"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: restore it by `git checkout {path}`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sums[name]:
        raise ValueError(f"it is not as {ZOO / SUMS} says: restore it by `git checkout {path}`")
    return path


def checksums() -> dict[str, str]:
    """Name -> SHA-256 of the models that are shipped, in the order of the list."""
    lines = (ZOO / SUMS).read_text().splitlines() if (ZOO / SUMS).is_file() else []
    listed = (line.split() for line in lines)
    return {file.removesuffix(SUFFIX): digest for digest, file in listed}
