"""Readers of image files: folders named by class, lists of paths, and arrays in one archive.

`in_memory` reads all images at once into an array, for small sets: true if they have one size, or
the side in pixels to resize them to. `mode` "L" makes those grey. `max_corrupt` is the share of
unreadable images beyond which reading stops.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import IMAGE_SUFFIXES, ArrayImages, FolderImages, read_image
from shared.data.readers.files import (
    integers,
    is_text,
    leaves,
    not_found,
    one_line,
    read_arrays,
    read_text,
    refusing,
    shortened,
)


def image_folder(
    root: str | Path,
    split: str,
    folders: Mapping[str, str] | None = None,
    in_memory: bool | int = False,
    mode: str = "RGB",
    max_corrupt: float = 0.01,
) -> FolderImages | ArrayImages:
    """Read `root/<split>/<class>/**/*`, with `folders` mapping a split to another folder name.

    Classes are numbered in the order of their sorted names in the "train" folder, images listed by
    class, then by path, as torchvision's ImageFolder does.
    """
    names = {"train": "train", split: split} | dict(folders or {})
    folder, train = Path(root) / names[split], Path(root) / names["train"]
    classes = class_folders(train if train.is_dir() else folder)
    if unknown := sorted(set(class_folders(folder)) - set(classes)):
        raise DataCorruptError(f"{folder / unknown[0]}: {train} has no class of that name")
    paths, labels = scan(folder, classes)
    every = split == "train"
    return image_set(paths, labels, classes, str(folder), in_memory, mode, max_corrupt, every)


def list_file(
    root: str | Path,
    split: str,
    lists: str,
    images: str | Path | None = None,
    num_classes: int | None = None,
    max_corrupt: float = 0.01,
) -> FolderImages:
    """Read the images that the file `root/lists` names ("{split}" stands for the split), in its
    order; see `read_list`. Its paths are relative to `images`, by default to `root`."""
    root = Path(root)
    path = root / lists.replace("{split}", split)
    relative, labels = read_list(path, num_classes)
    names = _folder_names(relative, labels, num_classes or int(labels.max()) + 1)
    paths = listed_paths(root if images is None else Path(images), relative, path)
    every = split == "train"
    return FolderImages(paths, labels, names, str(path), max_corrupt, every_class=every)


def archive(root: str | Path, split: str, file: str) -> ArrayImages:
    """Read `root/file` ("{split}" stands for the split), a .npz of arrays without pickles.

    It holds `images` (N, H, W) or (N, H, W, 3) uint8, `labels` (N,) and `class_names` (K,).
    """
    path = Path(root) / file.replace("{split}", split)
    content = read_arrays(path)
    with refusing(f"{path}: no arrays images, labels and class_names; build it anew"):
        images, labels, names = (content[k] for k in ("images", "labels", "class_names"))
        if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 rows")
        if names.dtype.kind != "U" or names.ndim != 1:
            raise ValueError(f"class_names are {names.dtype} {names.shape}, not texts")
        labels = integers(labels, least=-1)
    return ArrayImages(images, labels, names.tolist(), str(path), split == "train")


def image_set(
    paths: Sequence[str],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    origin: str,
    in_memory: bool | int,
    mode: str,
    max_corrupt: float,
    every_class: bool,
    truncated: bool = False,
) -> FolderImages | ArrayImages:
    """Return the images as files to be read when asked for, or decoded once into an array."""
    if in_memory is False or in_memory is None:
        return FolderImages(paths, labels, class_names, origin, max_corrupt, truncated, every_class)
    side = None if in_memory is True else int(in_memory)
    pixels: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            pixels.append(read_image(path, mode, side, truncated))
        except FileNotFoundError as error:
            raise DataNotFoundError(not_found(Path(path))) from error
        except (OSError, DataCorruptError) as error:
            raise DataCorruptError(f"{path}: unreadable image ({one_line(error)})") from error
        if pixels[-1].shape != pixels[0].shape:
            sizes = f"{pixels[-1].shape[:2]} pixels, but {paths[0]} has {pixels[0].shape[:2]}"
            raise DataCorruptError(f"{path}: {sizes}; set in_memory to a side for all")
    images = np.stack(pixels) if pixels else np.zeros((0, 0, 0), np.uint8)
    return ArrayImages(images, labels, class_names, origin, every_class)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, of which there must be some."""
    if not folder.is_dir():
        raise DataNotFoundError(not_found(folder))
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise DataNotFoundError(f"{folder} holds no folder: expected {folder}/<class>/<image>")
    return names


def scan(folder: Path, classes: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """List the image files below each class folder, in the order of torchvision's ImageFolder."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files_of: dict[str, list[str]] = {}
        seen: set[tuple[int, int]] = set()  # links may lead in circles
        for parent, folders, files in os.walk(folder / name, followlinks=True):
            status = os.stat(parent)
            if (place := (status.st_dev, status.st_ino)) in seen:
                folders.clear()
                continue
            seen.add(place)
            folders.sort()
            files_of[parent] = sorted(f for f in files if f.lower().endswith(IMAGE_SUFFIXES))
        found = [os.path.join(parent, f) for parent in sorted(files_of) for f in files_of[parent]]
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels, np.int64)


def read_list(path: Path, num_classes: int | None = None) -> tuple[list[str], NDArray[np.int64]]:
    """Read lines "relative/path label", without blank ones and labels from `num_classes` on."""
    paths, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, label = [*line.rsplit(maxsplit=1), ""][:2]
        if not label.isdecimal() or len(label) > 7:  # no list has ten million classes
            raise DataCorruptError(f"{path}, line {number}: {shortened(line)} is not 'path label'")
        if num_classes is None or int(label) < num_classes:
            paths.append(name.strip())
            labels.append(int(label))
    if not paths:
        raise DataCorruptError(f"{path}: lists no image")
    return paths, np.array(labels, np.int64)


def _folder_names(paths: Sequence[str], labels: NDArray[np.int64], num_classes: int) -> list[str]:
    """Name each class by the folder of its images if it has one of its own, else by its number."""
    folders = [os.path.basename(os.path.dirname(path)) for path in paths]
    pairs = set(zip(labels.tolist(), folders, strict=True))
    by_label, names = dict(pairs), {name for _, name in pairs}
    own = len(pairs) == len(by_label) == len(names) == num_classes and all(names)
    return [by_label[k] if own else str(k) for k in range(num_classes)]


def listed_paths(folder: Path, names: Sequence[Any], origin: Path) -> list[str]:
    """Join the paths that the file `origin` lists to their folder, which they may not leave. Of 64
    evenly spaced ones all must be there, so that a wrong root shows before training starts."""
    for name in names:
        if not is_text(name) or "\0" in name or leaves(name):
            raise DataCorruptError(f"{origin}: {shortened(name)} is no path below {folder}")
    paths = [str(folder / name) for name in names]
    for place in np.unique(np.linspace(0, len(paths) - 1, 64).astype(int)):
        if not Path(paths[place]).is_file():
            raise DataNotFoundError(f"{not_found(Path(paths[place]))} ({origin} lists it)")
    return paths


def known_split(split: str, *splits: str) -> str:
    """Return `split`; ValueError if it is none of `splits`."""
    if split not in splits:
        raise ValueError(f"split={split!r}: expected one of {', '.join(splits)}")
    return split


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in read_text(path).splitlines() if line.strip()]
