"""What the small models learn from: drawings of the training artists in several styles, those of a
further artist, Streamline, whom no other set here has, and scenes."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generators_of,
    write_json,
    write_pictures,
)
from benchmarks.miniatures.emoji.packages import load, of_split, read_set
from benchmarks.miniatures.emoji.pairs import SIZE, pairs
from benchmarks.miniatures.emoji.render import draw, renderings, svg
from benchmarks.miniatures.emoji.scenes import article, scenes
from benchmarks.zoo.restyling import restyle
from shared.data.packages import npm
from shared.files import read_json

SCENES: dict[str, Any] = {"train": 4000, "val": 300, "test": 300}
SCENES |= {"objects": (1, 3), "longest_side": (28, 44)}
STREAMLINE = npm(
    "@iconify-json/streamline-emojis",
    "1.2.4",
    "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
)
LICENCE = "CC-BY-SA-4.0"  # of the whole: share-alike, as the emoji pairs
STYLES = 5  # of each drawing: its own and further ones
VERSION = 2  # raise it with any change of the drawings or texts
# Found by looking at every drawing beside its name: another thing of that name.
DENIED = {"turkey", "headphone"}


def drawings_and_scenes(root: str | Path) -> Provenance:
    """Make `emoji-pairs`, `emoji-drawings` and `emoji-zoo-scenes` present in the folder of all
    data."""
    root = Path(root)
    return {**drawings(root), **scenes(root / "emoji-zoo-scenes", **SCENES)}


def drawings(root: str | Path) -> Provenance:
    """Make `emoji-pairs` present in the folder of all data, and `emoji-drawings`:
    `images_rgba/<artist>/<icon>-<style>.png`, 64 px, and `pairs_train.json`, whose captions are
    those of the emoji pairs of the same concept, and names also with their article. Style 0 is the
    artist's own."""
    root = Path(root)
    made = pairs(root / "emoji-pairs")
    recipe: dict[str, Any] = {"version": VERSION, "size": SIZE, "styles": STYLES}
    recipe |= {"package": STREAMLINE.sha256}
    recipe |= {"pairs": made["emoji-pairs"]["files"]["pairs_train.json"]}
    files = build_once(root / "emoji-drawings", "drawings", recipe, lambda f: _build(f, root))
    return {**made, "emoji-drawings": {"files": files, "licence": LICENCE}}


def _build(folder: Path, root: Path) -> None:
    captions: dict[int, list[str]] = defaultdict(list)
    for pair in read_json(root / "emoji-pairs" / "pairs_train.json"):
        if pair["caption"] not in captions[pair["image_id"]]:
            captions[pair["image_id"]].append(pair["caption"])
    for texts in captions.values():
        names = [text for text in texts if text.count(" ") <= 1 and article(text)]
        texts += [f"{article(name)} {name}" for name in names]
    labels = {_plain(texts[0]): concept for concept, texts in captions.items()}
    icons, info = read_set(STREAMLINE)
    documents, concepts = {}, {}
    for path, concept, document in (*_artists(), *_streamline(icons, labels)):
        documents[path], concepts[path] = document, concept
    names = [f"images_rgba/{path}-{style}.png" for path in documents for style in range(STYLES)]
    write_pictures(folder, names, _drawn(documents))
    items = [
        {"image": f"images_rgba/{path}-{style}.png", "caption": text, "image_id": concept}
        for path, concept in concepts.items()
        for style in range(STYLES)
        for text in captions[concept]
    ]
    write_json(folder / "pairs_train.json", items, indent=0)
    author = info["author"]
    (folder / "ATTRIBUTION.md").write_text(
        (root / "emoji-pairs" / "ATTRIBUTION.md").read_text()
        + f"\n- `streamline`: {info['name']} by {author['name']} ({author['url']}), CC-BY-4.0; "
        f"{STREAMLINE.archive}\n\nPictures whose number isn't 0 were changed here: other colours, "
        "outlines, and parts left out.\n"
    )


def _drawn(documents: dict[str, str]) -> Iterator[NDArray[np.uint8]]:
    """Every document in its `STYLES`, 64 px RGBA."""
    generators = generators_of(0, "styles", len(documents))
    for document, generator in zip(documents.values(), generators, strict=True):
        for style in range(STYLES):
            drawn = draw(restyle(document, generator) if style else document)
            small = Image.fromarray(drawn).resize((SIZE, SIZE), Image.Resampling.BOX)
            yield np.asarray(small)


def _artists() -> Iterator[tuple[str, int, str]]:
    """Path, concept and document of every training artist's drawings."""
    _, icons, _ = load()
    for artist in of_split("train"):
        for concept in renderings().concepts:
            if (name := concept.icons[artist]) is not None:
                yield f"{artist}/{concept.id:04}", concept.id, svg(icons[artist], name)


def _streamline(icons: dict[str, Any], labels: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    """Those of Streamline whose name is a concept's label; there may be several of one."""
    for name in sorted(icons["icons"]):
        concept = labels.get(_plain(re.sub(r"-\d+$", "", name)))
        if concept is not None and name not in DENIED:
            yield f"streamline/{name}", concept, svg(icons, name)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
