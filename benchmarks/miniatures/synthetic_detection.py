"""A tiny artificial detection set with a long tail, in COCO's and LVIS's formats, for tests and
smoke runs: pictures of two coloured shapes. Proves nothing about images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.miniatures.building import Provenance, build_once, generator_of, write_json
from benchmarks.miniatures.detection import Dataset, dealt, long_tail_counts, lvis_of, run_lengths
from benchmarks.miniatures.synthetic_pairs import OBJECTS, Picture

VERSION = 2  # raise it with any change of the pictures
FIRST_ID = {"train": 1000, "val": 2000, "test": 3000}


def shapes(
    root: str | Path,
    classes: int = 6,
    most: int = 24,
    fewest: int = 2,
    test: int = 4,
    image_size: int = 32,
    seed: int = 0,
) -> Provenance:
    """Write the set into `root`, unless it is there, and return its provenance.

    Training has from `most` to `fewest` instances of a class, validation and test have `test` of
    each. `images/<split>/`, `instances_<split>.json`, `lvis_v0.5_<split>.json` and, for detectors
    of any class, `open_vocabulary_<split>.json` for each split.
    """
    counts = {"train": long_tail_counts(classes, most, fewest)}
    counts |= {split: [test] * classes for split in ("val", "test")}

    def build(folder: Path) -> None:
        training = None
        for split, of_split in counts.items():
            generator = generator_of(seed, split)
            contents = dealt(of_split, generator, fewest=2, most=2)
            pictures = [
                Picture.placed(number, OBJECTS[upper], OBJECTS[lower], image_size, generator)
                for number, (upper, lower) in enumerate(contents, FIRST_ID[split])
            ]
            (folder / "images" / split).mkdir(parents=True)
            for picture in pictures:
                picture.pixels().save(folder / "images" / split / f"{picture.id}.png")
            coco = _coco(pictures, classes)
            training = training or coco
            write_json(folder / f"instances_{split}.json", coco)
            write_json(folder / f"lvis_v0.5_{split}.json", lvis_of(coco, training))
            described = with_texts(coco, novel=classes // 3, training=split == "train")
            write_json(folder / f"open_vocabulary_{split}.json", described)

    recipe = {"version": VERSION, "classes": classes, "most": most, "fewest": fewest, "test": test}
    recipe |= {"image_size": image_size, "seed": seed}
    files = build_once(root, "synthetic-detection", recipe, build)
    return {"synthetic-detection": {"files": files, "licence": "CC0-1.0"}}


def _coco(pictures: list[Picture], classes: int) -> Dataset:
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        inked = (np.asarray(picture.pixels()) != picture.ground).any(axis=2)
        for named, box in zip((picture.upper, picture.lower), picture.boxes, strict=True):
            x, y, width, height = box
            mask = np.zeros_like(inked)
            mask[y : y + height, x : x + width] = inked[y : y + height, x : x + width]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture.id,
                    "category_id": OBJECTS.index(named) + 1,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "segmentation": run_lengths(mask),
                    "iscrowd": 0,
                }
            )
    images = [
        {"id": p.id, "file_name": f"{p.id}.png", "width": p.size, "height": p.size}
        for p in pictures
    ]
    categories = [
        {"id": number, "name": " ".join(named), "supercategory": named[1]}
        for number, named in enumerate(OBJECTS[:classes], 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def with_texts(coco: Dataset, novel: int, training: bool) -> Dataset:
    """The set in PB-OVD's format: the last `novel` classes are not seen in training, and names,
    two words each, are embedded by what the words are."""
    words = sorted({word for named in OBJECTS for word in named})
    categories = []
    for place, category in enumerate(coco["categories"]):
        unseen = place >= len(coco["categories"]) - novel
        if training and unseen:
            continue
        embedding = [float(word in category["name"].split()) for word in words]
        split = "unseen" if unseen else "seen"
        categories.append({**category, "split": split, "embedding": {"ClipEmb": embedding}})
    known = {category["id"] for category in categories}
    kept = [row for row in coco["annotations"] if row["category_id"] in known]
    return {**coco, "categories": categories, "annotations": kept}
