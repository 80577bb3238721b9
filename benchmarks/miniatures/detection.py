"""What builders of detection sets have in common: a long tail of classes, and LVIS's files."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.evaluation.detection import frequency_groups

DEALS, EVEN_DEALS = 100, 10  # attempts to deal objects to scenes by lot, and then evenly
Dataset = dict[str, list[dict[str, Any]]]


def long_tail_counts(classes: int, most: int, fewest: int) -> list[int]:
    """Numbers of instances that fall from `most` to `fewest` by the same factor each time."""
    exponents = np.arange(classes) / (classes - 1)
    counts = np.round(most * (fewest / most) ** exponents).astype(int)
    return np.maximum(fewest, counts).tolist()


def dealt(
    counts: Sequence[int], generator: np.random.Generator, fewest: int = 2, most: int = 4
) -> list[list[int]]:
    """Scenes of `fewest` to `most` different classes, 0, 1, ..., in which class c occurs exactly
    `counts[c]` times; ValueError if there are no such scenes, or none are found."""
    total = sum(counts)
    if total < fewest:
        raise ValueError(f"{total} objects are too few for a scene of {fewest}")
    for deal in range(DEALS + EVEN_DEALS):
        sizes = generator.integers(fewest, most + 1, total // fewest)
        sizes = sizes[: np.searchsorted(np.cumsum(sizes), total) + 1]
        sizes[-1] -= sizes.sum() - total
        if sizes[-1] < fewest:
            continue
        free = sizes.copy()
        scenes: list[list[int]] = [[] for _ in sizes]
        for label in np.argsort(counts)[::-1].tolist():
            if np.count_nonzero(free) < counts[label]:
                break
            if deal < DEALS:
                chances = free / max(1, free.sum())
                chosen = generator.choice(len(free), counts[label], replace=False, p=chances)
            else:  # the emptiest scenes first: less varied, and it succeeds where anything does
                order = np.lexsort((generator.random(len(free)), -free))
                chosen = order[: counts[label]]
            free[chosen] -= 1
            for scene in chosen.tolist():
                scenes[scene].append(label)
        else:
            return [generator.permutation(scene).tolist() for scene in scenes]
    raise ValueError(f"no scenes of {fewest} to {most} different classes give {list(counts)}")


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed RLE of an (H, W) mask: lengths of runs down the columns, off first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = [0] * int(flat[0]) + [0, *changes.tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def lvis_of(coco: Dataset, training: Dataset) -> Dataset:
    """COCO's annotations as LVIS v0.5 has them, with the categories' counts in training.

    The builders annotate everything, so each image lacks every other category, and says so: with
    no negative categories, detections of what an image doesn't show would not count against one.
    """
    shown: dict[int, set[int]] = {image["id"]: set() for image in coco["images"]}
    for row in coco["annotations"]:
        shown[row["image_id"]].add(row["category_id"])
    every = [category["id"] for category in coco["categories"]]
    images = [
        image
        | {
            "neg_category_ids": [number for number in every if number not in shown[image["id"]]],
            "not_exhaustive_category_ids": [],
        }
        for image in coco["images"]
    ]
    instances = Counter(row["category_id"] for row in training["annotations"])
    pairs = {(row["category_id"], row["image_id"]) for row in training["annotations"]}
    pictures = Counter(category for category, _ in pairs)
    letters = frequency_groups(np.array([pictures[number] for number in every]))
    categories = [
        category
        | {
            "synset": f"{category['name'].replace(' ', '_')}.n.01",
            "synonyms": [category["name"]],
            "image_count": pictures[category["id"]],
            "instance_count": instances[category["id"]],
            "frequency": letter,
        }
        for category, letter in zip(coco["categories"], letters, strict=True)
    ]
    annotations = [
        {key: value for key, value in row.items() if key != "iscrowd"}
        for row in coco["annotations"]
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
