"""ImageNet as folders of images, and the split file of the official semi-supervised protocol."""

import json
import os
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.images import DataCorruptError, DataNotFoundError, FolderImages, ImageSet
from shared.data.splits import Split, labels_per_class, per_class_split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


def imagenet(root: str | Path, split: str, max_corrupt: float = 0.01) -> FolderImages:
    """Read `root/train/<class>/*` ("train") or `root/val/<class>/*` ("test").

    Classes are numbered in the order of their sorted folder names. `max_corrupt` is the share of
    unreadable images beyond which reading stops.
    """
    folder = Path(root) / {"train": "train", "test": "val"}[split]
    if not folder.is_dir():
        raise DataNotFoundError(
            f"{folder} not found. Place the images there as {folder}/<class>/<image> (ImageNet is "
            "handed out by its owners only), or set data_root=DIR or TENFOLD_DATA=DIR"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(f for f in os.listdir(folder / name) if f.lower().endswith(SUFFIXES))
        paths += [str(folder / name / file) for file in files]
        labels += [label] * len(files)
    return FolderImages(paths, np.array(labels), names, str(folder), max_corrupt)


def split_file(
    images: ImageSet, candidates: NDArray[np.int64], num_labels: int, seed: int, path: str | Path
) -> Split:
    """Read the official split file: "labeled_samples" and "unlabeled_samples" of [path, class].

    A missing file is first made by `per_class_split`, and written at once or not at all. Images are
    recognised by `<class folder>/<file name>`, so a file made on another machine serves as well.

    Raises:
        ValueError: the file labels another number of images per class than asked for (a "10 %" run
            must not train on a 1 % file), was made with another seed, or does not fit the images.
    """
    if not isinstance(images, FolderImages) or len(candidates) != len(images):
        raise ValueError("a split file needs a folder data set, used whole (subset=null)")
    path = Path(path)
    if not path.exists():
        _write(path, images, per_class_split(images, candidates, num_labels, seed), seed)
    try:
        content = json.loads(path.read_text())
        labelled, unlabelled = content["labeled_samples"], content["unlabeled_samples"]
    except (ValueError, KeyError) as error:
        raise DataCorruptError(
            f"{path}: not a split file ({error!r}); delete or repair it"
        ) from error
    if content.get("seed", seed) != seed:
        raise ValueError(
            f"{path} was made with split_seed={content['seed']}, not {seed}: give each its own path"
        )
    index_of = {_key(images.path(i)): i for i in range(len(images))}
    result = Split(*(_indices(part, index_of, path) for part in (labelled, unlabelled)))
    wanted = labels_per_class(num_labels, len(images.class_names))
    found = np.bincount(images.labels[result.labelled], minlength=len(images.class_names))
    if (found != wanted).any():
        raise ValueError(
            f"{path} labels {found.min()} to {found.max()} images per class, {wanted} were asked "
            f"for (num_labels={num_labels}): it belongs to another percentage; name another path"
        )
    return result


def _write(path: Path, images: FolderImages, split: Split, seed: int) -> None:
    def samples(indices: NDArray[np.int64]) -> list[list[Any]]:
        return [[images.path(int(i)), int(images.labels[i])] for i in indices]

    content = {
        "labeled_samples": samples(split.labelled),
        "unlabeled_samples": samples(split.unlabelled),
        "seed": seed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def _key(path: str) -> str:
    return "/".join(PurePath(path).parts[-2:])


def _indices(samples: list[list[Any]], index_of: dict[str, int], path: Path) -> NDArray[np.int64]:
    try:
        return np.sort(np.array([index_of[_key(name)] for name, _ in samples], np.int64))
    except KeyError as error:
        raise ValueError(f"{path} lists {error}, which is not among the training images") from error
