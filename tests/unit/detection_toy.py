"""A COCO and an LVIS file of two small pictures, to be changed by tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.data.readers.instances import Instances, read_instances

SIZES = ((20, 30), (24, 16))  # height, width


def content() -> dict[str, Any]:
    """Classes 7 and 3; picture 5 shows an object of each, picture 2 two of 7 and a crowd of 3."""
    square = {"size": [24, 16], "counts": [0, 12, 372]}
    rows = [
        (1, 5, 7, [2, 3, 10, 5], [[2, 3, 12, 3, 12, 8, 2, 8]], 0),
        (2, 2, 7, [0, 0, 1, 12], square, 0),
        (3, 5, 3, [15, 10, 10, 8], [[15, 10, 25, 10, 25, 18, 15, 18]], 0),
        (4, 2, 7, [4, 4, 8, 10], [[4, 4, 12, 4, 12, 14, 4, 14]], 0),
        (5, 2, 3, [0, 12, 16, 12], {"size": [24, 16], "counts": [12, 12, 360]}, 1),
    ]
    keys = ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd")
    annotations = [dict(zip(keys, row, strict=True)) for row in rows]
    for row in annotations:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            for number, (height, width) in zip((5, 2), SIZES, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "dog"}],
    }


def federated() -> dict[str, Any]:
    """The same as LVIS has it, with a third class that picture 2 is known to lack."""
    found = content()
    for row in found["annotations"]:
        del row["iscrowd"]
    for image, negative in zip(found["images"], ([], [9]), strict=True):
        image |= {"neg_category_ids": negative, "not_exhaustive_category_ids": []}
    found["images"][0]["not_exhaustive_category_ids"] = [7]
    found["categories"].append({"id": 9, "name": "owl"})
    for row, letter in zip(found["categories"], "fcr", strict=True):
        row["frequency"] = letter
    return found


def written(folder: Path, value: Any) -> Path:
    """The file, with its pictures beside it, each of one colour that rises to the right."""
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    for number, (height, width) in zip((5, 2), SIZES, strict=True):
        columns = np.arange(width, dtype=np.uint8)[None, :, None]
        picture = np.broadcast_to(columns, (height, width, 3))
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{number}.png")
    return path


def read(folder: Path, value: Any, masks: bool = True) -> Instances:
    return read_instances(written(folder, value), folder, masks)
