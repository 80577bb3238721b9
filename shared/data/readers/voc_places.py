"""Data sets on which frozen features are judged: VOC2007 (several labels) and Places205."""

import random
from pathlib import Path

import numpy as np

from shared.data.errors import DataCorruptError
from shared.data.images import FolderImages
from shared.data.readers.files import shortened
from shared.data.readers.folders import known_split, listed_paths, read_list, text_lines

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"


def voc2007(root: str | Path, split: str, max_corrupt: float = 0.01) -> FolderImages:
    """Read `root/VOCdevkit/VOC2007`: "train" is its trainval set, "test" its test set.

    Labels (N, 20) are those of ImageSets/Main/<class>_<set>.txt: 1 present, -1 absent, 0 difficult
    (docs/papers/pcl.md, section 6).
    """
    name = "trainval" if known_split(split, "train", "val", "test") == "train" else "test"
    folder = Path(root) / "VOCdevkit" / "VOC2007"
    columns: list[list[int]] = []
    ids: list[str] = []
    for class_name in VOC_CLASSES:
        path = folder / "ImageSets" / "Main" / f"{class_name}_{name}.txt"
        fields = [line.split() for line in text_lines(path)]
        if bad := [f for f in fields if len(f) < 2 or f[-1] not in ("-1", "0", "1")]:
            raise DataCorruptError(f"{path}: {shortened(' '.join(bad[0]))} is not 'id label'")
        if not (found := [f[0] for f in fields]):
            raise DataCorruptError(f"{path}: lists no image")
        if columns and found != ids:
            raise DataCorruptError(f"{path}: lists other images than that of {VOC_CLASSES[0]}")
        ids = found
        columns.append([int(f[-1]) for f in fields])
    paths = listed_paths(folder / "JPEGImages", [f"{number}.jpg" for number in ids], path)
    labels = np.array(columns, np.int64).T
    return FolderImages(paths, labels, VOC_CLASSES, f"{folder} ({name})", max_corrupt)


def places205(
    root: str | Path, split: str, shots: int | None = None, seed: int = 0, max_corrupt: float = 0.01
) -> FolderImages:
    """Read Places205 by `root/trainvalsplit_places205/{train,val}_places205.csv`.

    Lines are "path label"; images lie below `root/data/vision/torralba/deeplearning/images256`.
    "test" and "val" are the validation list. `shots` keeps that many training images of each class,
    drawn with `seed`, in class order; the draw of fewer is the beginning of that of more.
    """
    name = "train" if known_split(split, "train", "val", "test") == "train" else "val"
    path = Path(root) / "trainvalsplit_places205" / f"{name}_places205.csv"
    relative, labels = read_list(path)
    classes = int(labels.max()) + 1
    if shots is not None and split == "train":
        generator, chosen = random.Random(seed), []
        for label in range(classes):
            members = np.flatnonzero(labels == label).tolist()
            if not 0 < shots <= len(members):
                raise ValueError(f"shots={shots}, but class {label} has {len(members)} images")
            generator.shuffle(members)
            chosen += members[:shots]
        relative, labels = [relative[i] for i in chosen], labels[chosen]
    paths = listed_paths(Path(root) / PLACES_IMAGES, relative, path)
    return FolderImages(paths, labels, list(map(str, range(classes))), str(path), max_corrupt)
