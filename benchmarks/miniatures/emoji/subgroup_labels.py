"""Emoji sub-groups as an image classification set: natural counts, long tail, ImageFolder.

A picture's label is its concept's sub-group; training pictures are six artists' drawings, the test
pictures a seventh's. `subgroups` is the entry, for use as a `source` of a config.
"""

import os
import shutil
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    save_arrays,
    write_list,
    write_pictures,
)
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import VERSIONS, of_split, provenance
from benchmarks.miniatures.emoji.render import Renderings, area_resize, on_ground, renderings
from shared.data.errors import DataCorruptError

SIZE = 32
FEWEST_CONCEPTS = 8  # of a sub-group that is a class
LONG_TAIL_MOST, LONG_TAIL_FEWEST = 200, 3
SPLITS = ("train", "val", "test")
VERSION = 1  # raise it with any change of the pictures or labels


@dataclass
class LabelledPictures:
    """Pictures (N, H, W[, 3]), their true classes (N,), -1 outside of these, and their paths, here
    "<sub-group>/<rendering>_<concept>.png"."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: list[str]

    def rows(self, chosen: NDArray[np.int64]) -> "LabelledPictures":
        paths = [self.paths[i] for i in chosen]
        return LabelledPictures(self.images[chosen], self.labels[chosen], paths)


def subgroups(root: str | Path) -> Provenance:
    """Make the sub-group sets present in `root`.

    Writes `images/{train,val,test}/<sub-group>/*.png`, and for each set NAME `NAME_{split}.npz` and
    `.txt`: `emoji` with natural counts, `emoji_lt` with a long tail of these.
    """
    recipe = {"version": VERSION, "size": SIZE, "packages": VERSIONS}
    return provenance("emoji-subgroups", build_once(root, "emoji", recipe, _build))


def class_subgroups(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Names of the classes in alphabetical order: sub-groups of enough concepts, no symbols."""
    counts = Counter(c.subgroup for c in concepts if c.group != "symbols")
    return tuple(sorted(name for name, count in counts.items() if count >= FEWEST_CONCEPTS))


def labelled_pictures(
    drawn: Renderings, split: str, class_names: Sequence[str]
) -> LabelledPictures:
    """All pictures of a split whose sub-group is a class, by class, concept and rendering."""
    label_of = {name: label for label, name in enumerate(class_names)}
    rows = sorted(
        (label_of[concept.subgroup], concept.id, name, concept.subgroup)
        for concept in drawn.concepts
        for name in of_split(split)
        if drawn.present[name][concept.id] and concept.subgroup in label_of
    )
    images = np.zeros((len(rows), SIZE, SIZE, 3), np.uint8)
    for name in of_split(split):
        of_rendering = [i for i, row in enumerate(rows) if row[2] == name]
        pictures = drawn.pictures[name][[rows[i][1] for i in of_rendering]]
        images[of_rendering] = area_resize(on_ground(pictures), SIZE)
    paths = [f"{subgroup}/{name}_{concept:04d}.png" for _, concept, name, subgroup in rows]
    return LabelledPictures(images, np.array([row[0] for row in rows], np.int64), paths)


def long_tail_counts(natural: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) pictures to keep per class: exponential in the class's rank, from 200 down to 3, or all
    that it has. Ranks follow the natural counts (ties: the lower label first)."""
    classes = len(natural)
    ratio = LONG_TAIL_FEWEST / LONG_TAIL_MOST
    asked = np.floor(LONG_TAIL_MOST * ratio ** (np.arange(classes) / max(classes - 1, 1)) + 1e-9)
    profile = np.maximum(asked, LONG_TAIL_FEWEST).astype(np.int64)
    counts = np.empty(classes, np.int64)
    counts[np.argsort(-natural, kind="stable")] = profile
    return np.minimum(natural, counts)


def long_tail_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted rows of the long tail. A class's pictures are drawn by a generator of its own, so that
    a larger count only adds to them."""
    counts = long_tail_counts(np.bincount(labels))
    kept = []
    for label, count in enumerate(counts):
        generator = np.random.default_rng([zlib.crc32(b"long tail"), label])
        kept.append(generator.permutation(np.flatnonzero(labels == label))[:count])
    return np.sort(np.concatenate(kept))


def _build(folder: Path) -> None:
    drawn = renderings()
    class_names = class_subgroups(drawn.concepts)
    sets = {split: labelled_pictures(drawn, split, class_names) for split in SPLITS}
    for split, pictures in sets.items():
        if missing := set(range(len(class_names))) - set(pictures.labels.tolist()):
            told = f"no picture of {', '.join(class_names[label] for label in sorted(missing))}"
            raise DataCorruptError(f"emoji {split}: {told}; the packages have changed")
        write_pictures(folder / "images" / split, pictures.paths, pictures.images)
    train = sets["train"]
    thinned = {**sets, "train": train.rows(long_tail_rows(train.labels))}
    _write_set(folder, "emoji", sets, class_names)
    _write_set(folder, "emoji_lt", thinned, class_names)
    # The long tail's ImageFolder: links to the pictures that are there.
    for split, pictures in thinned.items():
        for path in pictures.paths:
            target = folder / "emoji_lt" / split / path
            target.parent.mkdir(parents=True, exist_ok=True)
            source = folder / "images" / split / path
            try:
                os.link(source, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, target)
    (folder / "ATTRIBUTION.md").write_text(drawn.attribution)


def _write_set(
    folder: Path, name: str, sets: dict[str, LabelledPictures], class_names: Sequence[str]
) -> None:
    for split, pictures in sets.items():
        paths = [f"images/{split}/{path}" for path in pictures.paths]
        write_list(folder / f"{name}_{split}.txt", paths, pictures.labels)
        arrays = folder / f"{name}_{split}.npz"
        save_arrays(arrays, pictures.images, pictures.labels, class_names, paths)
