"""What the emoji sets are made of, openly licensed: drawings, words and photographs of packages.

What is pinned stands in sources.yaml, and there why. scikit-learn, which has some photographs, is
installed anyway. Of scikit-image only the wheel is fetched, and read in place; the one pinned
serves every machine, since only its pictures are used.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.building import Provenance
from benchmarks.miniatures.emoji.concepts import SHORTCODES, Concept, IconSet, concept_table
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.packages import Package, fetch, npm, read_member, wheel
from shared.data.readers.files import refusing

PINNED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text())
LICENCE = "Apache-2.0, MIT, CC-BY-4.0 and CC-BY-SA-4.0 art: together CC-BY-SA-4.0"


@dataclass(frozen=True)
class Rendering:
    """One artist's set of icons for a split; `licence` is that of the art (SPDX)."""

    id: str
    split: str
    package: Package
    licence: str


@dataclass(frozen=True)
class Photograph:
    """A ground for scenes. `split`: "test" where it is for the test alone, else "train"."""

    file: str
    split: str
    licence: str
    sha256: str
    credit: str

    @property
    def id(self) -> str:
        return Path(self.file).stem


RENDERINGS = tuple(
    Rendering(r["id"], r["split"], npm(r["name"], r["version"], r["sha256"]), r["licence"])
    for r in PINNED["renderings"]
)
TEXTS = npm(**PINNED["words"])
PACKAGES = [*(r.package for r in RENDERINGS), TEXTS]
# What a build's recipe says of the renderings.
VERSIONS = {r.id: f"{r.package.name}@{r.package.version}" for r in RENDERINGS}
WHEEL = wheel(**PINNED["photographs_wheel"])
PHOTOGRAPHS = tuple(Photograph(**about) for about in PINNED["photographs"])


def load() -> tuple[list[Concept], dict[str, Any], dict[str, Any]]:
    """Concepts with their icons, and each rendering's icons.json and info.json, fetched once."""
    *archives, texts = fetch(PACKAGES)
    icons, info, icon_sets = {}, {}, {}
    for rendering, archive in zip(RENDERINGS, archives, strict=True):
        name = rendering.id
        icons[name], info[name] = (_json(archive, f"{part}.json") for part in ("icons", "info"))
        characters = _json(archive, "chars.json")
        icon_sets[name] = IconSet(icons[name], characters, name in PINNED["loose_names"])
    concepts = concept_table(
        _json(texts, "en/data.json"),
        _json(texts, "meta/groups.json"),
        [_json(texts, f"en/shortcodes/{name}.json") for name in SHORTCODES],
        icon_sets,
        {name: set().union(*lines) for name, lines in PINNED["denied"].items()},
        PINNED["former_labels"],
    )
    return concepts, icons, info


def read_set(package: Package) -> tuple[dict[str, Any], dict[str, Any]]:
    """icons.json and info.json of an Iconify set, fetched once."""
    (archive,) = fetch([package])
    return _json(archive, "icons.json"), _json(archive, "info.json")


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return all ten, {id: (H, W, 3) uint8}; the first call on a machine fetches them."""
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


def of_split(split: str) -> list[str]:
    """Ids of the renderings of "train", "val" or "test"."""
    return [r.id for r in RENDERINGS if r.split == split]


def grounds(split: str) -> list[str]:
    """Ids of the photographs for a split. Validation shares those of training, so that the test's
    are seen in the test alone."""
    return [p.id for p in PHOTOGRAPHS if (p.split == "test") == (split == "test")]


def provenance(name: str, files: Mapping[str, str], **further: Any) -> Provenance:
    """The record of a set that is made of the drawings, and of each of these."""
    packages = {r: {r.package.archive: r.package.sha256} for r in RENDERINGS}
    art = {r.id: {"files": files, "licence": r.licence} for r, files in packages.items()}
    return {**art, name: {"files": dict(files), "licence": LICENCE, **further}}


def attribution(info: Mapping[str, Any]) -> str:
    """The text of ATTRIBUTION.md: authors, sources and licences of the art and the words."""
    told = "The pictures here are renderings of these icons, scaled and set on a plain ground.\n"
    lines = ["# Attribution\n", told]
    for rendering in RENDERINGS:
        about, package = info[rendering.id], rendering.package
        author = about["author"]
        lines.append(
            f"- `{rendering.id}`: {about['name']} by {author['name']} ({author.get('url', '')}), "
            f"{rendering.licence}; npm package {package.name} {package.version}"
        )
    lines += [
        f"- labels, tags and groups: {TEXTS.name} {TEXTS.version}, MIT; derived from Unicode CLDR "
        "(Unicode-3.0)\n",
        "OpenMoji and EmojiOne 1 are share-alike: a set that holds them is CC-BY-SA-4.0 as a "
        "whole.\n",
    ]
    return "\n".join(lines)


def _json(archive: Path, member: str) -> Any:
    """The parsed JSON file `package/<member>` of an npm archive."""
    with refusing(f"{archive}: package/{member} can't be read"):
        return json.loads(read_member(archive, f"package/{member}"))


def _installed(file: str) -> bytes:
    """A file of the installed scikit-learn, which need not be imported for it."""
    package, _, below = file.partition("/")
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (path := Path(folder) / below).is_file():
            return path.read_bytes()
    raise DataNotFoundError(f"{file}: not in this environment; pip install scikit-learn")
