"""The openly licensed packages that the emoji sets are made of, and their attribution.

Roles of the renderings: six to train, EmojiTwo to validate, Fluent held out for the test. They are
drawn independently, so that a test picture is no copy of a training picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.miniatures.emoji.concepts import SHORTCODES, Concept, IconSet, concept_table
from benchmarks.miniatures.packages import NpmPackage, fetch, read_json


@dataclass(frozen=True)
class Rendering:
    """One artist's set of icons. `licence` is that of the art (SPDX)."""

    id: str
    split: str
    package: NpmPackage
    licence: str


def _icons(name: str, version: str, sha256: str) -> NpmPackage:
    return NpmPackage(f"@iconify-json/{name}", version, sha256)


RENDERINGS = (
    Rendering(
        "noto",
        "train",
        _icons("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        "Apache-2.0",
    ),
    Rendering(
        "twemoji",
        "train",
        _icons(
            "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
        ),
        "CC-BY-4.0",
    ),
    Rendering(
        "openmoji",
        "train",
        _icons(
            "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"
        ),
        "CC-BY-SA-4.0",
    ),
    Rendering(
        "fluent",
        "test",
        _icons(
            "fluent-emoji-flat",
            "1.2.6",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        ),
        "MIT",
    ),
    Rendering(
        "noto1",
        "train",
        _icons(
            "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"
        ),
        "Apache-2.0",
    ),
    Rendering(
        "eone1",
        "train",
        _icons(
            "emojione-v1",
            "1.2.3",
            "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        ),
        "CC-BY-SA-4.0",
    ),
    Rendering(
        "fx",
        "train",
        _icons(
            "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"
        ),
        "Apache-2.0",
    ),
    Rendering(
        "etwo",
        "val",
        _icons(
            "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"
        ),
        "CC-BY-4.0",
    ),
)
TEXTS = NpmPackage(
    "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
)
LICENCE = "Apache-2.0, MIT, CC-BY-4.0 and CC-BY-SA-4.0 art: together CC-BY-SA-4.0"
LOOSE_NAMES = {"fx"}  # writes "lovehotel" for love-hotel

# Found by looking at every drawing matched by name beside Twemoji's, in these versions: another
# object of that name, the face where the concept is the whole animal, or colours that are lost.
DENIED = {
    "fx": {
        *("cat", "dog", "mouse", "pig", "tiger"),  # their faces
        *("game die", "keyboard", "sunglasses", "window"),  # domino, piano, face, computer window
        *("fog", "tram car"),  # white on white, black
    },
    "eone1": {"keyboard", "laptop", "window"},  # piano, desktop computer, computer window
}
# The Unicode names of the cats until CLDR dropped the "face". Under the new ones alone EmojiTwo,
# the validation rendering, would have no picture of this sub-group.
FORMER_LABELS = {
    "grinning cat": "grinning cat face",
    "grinning cat with smiling eyes": "grinning cat face with smiling eyes",
    "cat with tears of joy": "cat face with tears of joy",
    "smiling cat with heart-eyes": "smiling cat face with heart eyes",
    "cat with wry smile": "cat face with wry smile",
    "kissing cat": "kissing cat face",
    "weary cat": "weary cat face",
    "crying cat": "crying cat face",
    "pouting cat": "pouting cat face",
}


@dataclass
class Sources:
    """The fetched packages: parsed icons.json and info.json per rendering, and the concepts."""

    concepts: list[Concept]
    icons: dict[str, Any]
    info: dict[str, Any]


def load() -> Sources:
    """Fetch what is missing and match icons to concepts."""
    *archives, texts = fetch([*(r.package for r in RENDERINGS), TEXTS])
    icons, info, icon_sets = {}, {}, {}
    for rendering, archive in zip(RENDERINGS, archives, strict=True):
        name = rendering.id
        icons[name] = read_json(archive, "icons.json")
        info[name] = read_json(archive, "info.json")
        characters = read_json(archive, "chars.json")
        icon_sets[name] = IconSet(icons[name], characters, loose=name in LOOSE_NAMES)
    concepts = concept_table(
        read_json(texts, "en/data.json"),
        read_json(texts, "meta/groups.json"),
        [read_json(texts, f"en/shortcodes/{name}.json") for name in SHORTCODES],
        icon_sets,
        DENIED,
        FORMER_LABELS,
    )
    return Sources(concepts, icons, info)


def of_split(split: str) -> list[str]:
    """Ids of the renderings of "train", "val" or "test"."""
    return [r.id for r in RENDERINGS if r.split == split]


def attribution(info: dict[str, Any]) -> str:
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


def packages() -> Sequence[NpmPackage]:
    """All pinned packages, for the record of a run."""
    return [*(r.package for r in RENDERINGS), TEXTS]
