"""Scenes of drawings in which few kinds are seen often and many hardly ever, for detectors.

Training scenes show six artists' drawings. Validation shows a seventh's on the photographs of
training, `test` an eighth's on others, and `test_seen` those of training on the others.
`long_tailed_scenes` is the entry, for use as a `source` of a config.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    write_json,
)
from benchmarks.miniatures.detection import dealt, long_tail_counts, lvis_of
from benchmarks.miniatures.emoji.scenes import (
    MADE_OF,
    attribution,
    coco_instances,
    make_scenes,
    scene_concepts,
    scene_provenance,
    studio,
    write_scenes,
)

VERSION = 1  # raise it with any change of the scenes
NAME = "long-tailed-scenes"


def long_tailed_scenes(
    root: str | Path,
    seed: int = 0,
    classes: int = 40,
    most: int = 600,
    fewest: int = 2,
    val: int = 10,
    test: int = 30,
) -> Provenance:
    """Make the scenes present in `root`.

    Writes `scenes/<split>/<12 digits>.png` (96 px, two to four objects of different classes) with
    `instances_<split>.json` in COCO's layout and `lvis_v0.5_<split>.json` in LVIS's, for the splits
    train, val, test and test_seen.

    Training has from `most` to `fewest` instances of a class, falling by the same factor; which
    class is how rare, `seed` decides. The other splits have `val` and `test` of each.
    """
    counts = {"most": most, "fewest": fewest, "val": val, "test": test}
    recipe: dict[str, Any] = {"version": VERSION, "seed": seed, "classes": classes, **counts}
    recipe |= MADE_OF
    falling = long_tail_counts(classes, most, fewest)
    ranks = generator_of(seed, f"{NAME} ranks").permutation(classes)
    splits = {
        "train": [falling[rank] for rank in ranks],
        "val": [val] * classes,
        "test": [test] * classes,
        "test_seen": [test] * classes,
    }

    def build(folder: Path) -> None:
        _build(folder, seed, splits)

    return scene_provenance(f"emoji-{NAME}", build_once(Path(root), NAME, recipe, build))


def _build(folder: Path, seed: int, splits: Mapping[str, Sequence[int]]) -> None:
    made_of = studio()
    concepts = scene_concepts(made_of.drawn, seed, len(splits["train"]))
    training = None
    for split, counts in splits.items():
        labels = dealt(counts, generator_of(seed, f"{NAME} {split} contents"))
        contents = [np.array(concepts)[row].tolist() for row in labels]
        made = make_scenes(made_of, split, contents, seed, NAME)
        write_scenes(folder, made_of, split, made)
        coco = coco_instances(made_of, made, concepts)
        training = training or coco
        write_json(folder / f"instances_{split}.json", coco)
        write_json(folder / f"lvis_v0.5_{split}.json", lvis_of(coco, training))
    (folder / "ATTRIBUTION.md").write_text(attribution(made_of))
