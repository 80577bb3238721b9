"""WebVision: images crawled by the names of the ImageNet classes, with the query as label.

<root>/info/train_filelist_{google,flickr}.txt   lines "relative/path label"
<root>/info/val_filelist.txt                     lines "file name label"
<root>/{google,flickr}/..., <root>/val_images_256/...
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.images import ArrayImages, FolderImages
from shared.data.readers.files import integers, read_json, refusing, shortened
from shared.data.readers.folders import image_set, known_split, listed_paths, read_list, text_lines

SOURCES = ("google", "flickr")


def webvision(
    root: str | Path,
    split: str,
    num_classes: int = 1000,
    cleaned: str | Path | None = None,
    lists: Sequence[str] = SOURCES,
    in_memory: bool | int = False,
    mode: str = "RGB",
    max_corrupt: float = 0.01,
) -> FolderImages | ArrayImages:
    """Read "train" (of the `lists`, in their order) or "test"/"val" (MoPro spec., 6.1).

    Truncated files are read as far as they go. Class names come from `info/class_names.txt` (one a
    line) where it exists, else they are the numbers. Images with labels from `num_classes` on are
    dropped; 50 and google's list alone are the usual small version. The annotation `cleaned`,
    {"images": paths relative to `root`, "labels": [ints]}, replaces the training lists.
    `in_memory`, `mode`: see `folders`.
    """
    root = base = Path(root)
    every = False
    if known_split(split, "train", "val", "test") != "train":
        origin, base = root / "info" / "val_filelist.txt", root / "val_images_256"
        relative, labels = read_list(origin, num_classes)
    elif cleaned is not None:
        origin = Path(cleaned)
        relative, labels = _read_annotation(origin, num_classes)
    else:
        origin, every = root / "info", True
        relative, labels = training_list(root, num_classes, lists)
    paths = listed_paths(base, relative, origin)
    names = [str(k) for k in range(num_classes)]
    if os.path.lexists(listed := root / "info" / "class_names.txt"):
        names = text_lines(listed)[:num_classes]
        if len(names) < num_classes:
            raise DataCorruptError(f"{listed}: {len(names)} names, num_classes={num_classes}")
    return image_set(
        paths, labels, names, str(origin), in_memory, mode, max_corrupt, every, truncated=True
    )


def training_list(
    root: Path, num_classes: int, lists: Sequence[str] = SOURCES
) -> tuple[list[str], NDArray[np.int64]]:
    """Paths and labels of the lists; of a path listed twice the last label."""
    if not lists or not set(lists) <= set(SOURCES):
        raise ValueError(f"lists={list(lists)}: expected one or more of {', '.join(SOURCES)}")
    paths: list[str] = []
    label_of: dict[str, int] = {}
    for source in lists:
        listed, labels = read_list(root / "info" / f"train_filelist_{source}.txt", num_classes)
        paths += listed
        label_of.update(zip(listed, labels.tolist(), strict=True))
    return paths, np.array([label_of[path] for path in paths], np.int64)


def _read_annotation(path: Path, num_classes: int) -> tuple[list[str], NDArray[np.int64]]:
    content = read_json(path)
    with refusing(f"{path}: no annotation of images and labels"):
        images, labels = content["images"], integers(content["labels"])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise ValueError(f"the images are {shortened(images)}, not paths")
    if len(images) != len(labels) or not images:
        raise DataCorruptError(f"{path}: {len(images)} images and {len(labels)} labels")
    if labels.max() >= num_classes:
        raise DataCorruptError(f"{path}: label {labels.max()} is not of the {num_classes} classes")
    return images, labels
