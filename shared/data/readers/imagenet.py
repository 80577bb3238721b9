"""ImageNet as folders of images, whole, split for semi-supervised learning, or a fraction of it."""

import json
import random
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import FolderImages, ImageSet
from shared.data.readers.files import not_found, read_json, refusing, shortened
from shared.data.readers.folders import class_folders, scan, text_lines
from shared.data.splits import Split, per_class_split
from shared.files import replacing


def imagenet(root: str | Path, split: str, max_corrupt: float = 0.01) -> FolderImages:
    """Read `root/train/<class>/*` ("train") or `root/val/<class>/*` ("test", "val")."""
    folder = Path(root) / {"train": "train", "test": "val", "val": "val"}[split]
    if not folder.is_dir():
        wanted = f"{folder}/<class>/<image>, which only the owners of ImageNet hand out"
        raise DataNotFoundError(f"{not_found(folder)}: expected {wanted}")
    names = class_folders(folder)
    return FolderImages(*scan(folder, names), names, str(folder), max_corrupt)


def imagenet_fraction(
    root: str | Path,
    split: str,
    fraction: float,
    list_path: str | Path,
    seed: int = 0,
    max_corrupt: float = 0.01,
) -> FolderImages:
    """Read ImageNet with a fixed fraction of its training images; "test" is the whole one.

    The fraction is the first int(fraction * N) of the shuffled list of training images, not drawn
    class by class (docs/papers/mopro.md, section 6.3). `list_path` holds one `<class folder>/<file
    name>` a line, for all processes and later runs; a missing file is first made with `seed`.
    """
    images = imagenet(root, split, max_corrupt)
    if split != "train":
        return images
    count, path = int(fraction * len(images)), Path(list_path)
    if not 0 < count <= len(images):
        raise ValueError(f"fraction={fraction} of {len(images)} images: must be within 0..1")
    keys = _keys(images)
    if not path.exists():
        order = list(range(len(images)))
        random.Random(seed).shuffle(order)
        _write(path, "".join(f"{keys[i]}\n" for i in sorted(order[:count])))
    listed = text_lines(path)
    if len(listed) != count:
        has = f"{path} lists {len(listed)} images, fraction={fraction} are {count}"
        raise ValueError(f"{has}: name another path")
    chosen = np.sort(_indices(listed, keys, path))
    paths, labels = [images.path(int(i)) for i in chosen], images.labels[chosen]
    names = images.class_names
    return FolderImages(paths, labels, names, str(path), max_corrupt, every_class=False)


def split_file(
    images: ImageSet, candidates: NDArray[np.int64], num_labels: int, seed: int, path: str | Path
) -> Split:
    """Read the official split file: "labeled_samples" and "unlabeled_samples" of [path, class].

    A missing file is first made by `per_class_split`. Images are recognised by `<class
    folder>/<file name>`, so a file made on another machine serves as well.
    """
    if not isinstance(images, FolderImages) or len(candidates) != len(images):
        raise ValueError("a split file needs a folder data set, used whole (subset=null)")
    path = Path(path)
    if not path.exists():
        split = per_class_split(images, candidates, num_labels, seed)
        parts = [[[images.path(int(i)), int(images.labels[i])] for i in part] for part in split]
        names = ("labeled_samples", "unlabeled_samples", "seed")
        _write(path, json.dumps(dict(zip(names, [*parts, seed], strict=True))))
    content = read_json(path)
    with refusing(f"{path}: not a split file, delete or repair it"):
        samples = [content["labeled_samples"], content["unlabeled_samples"]]
        labelled, unlabelled = ([name for name, _ in part] for part in samples)
    if content.get("seed", seed) != seed:
        made = shortened(content["seed"])
        raise ValueError(f"{path} was made with split_seed={made}, not {seed}: name another path")
    chosen = _indices([*labelled, *unlabelled], _keys(images), path)
    result = Split(*map(np.sort, np.split(chosen, [len(labelled)])))
    classes = len(images.class_names)
    found = np.bincount(images.labels[result.labelled], minlength=classes)
    if (found != num_labels / classes).any():
        has = f"{path} labels {found.min()} to {found.max()} images per class"
        wanted = f"num_labels={num_labels} of {classes} classes"
        raise ValueError(f"{has}, not {wanted}: name another path")
    return result


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def _keys(images: FolderImages) -> list[str]:
    return [_key(images.path(i)) for i in range(len(images))]


def _key(path: str) -> str:
    return "/".join(PurePath(path).parts[-2:])


def _indices(names: list[Any], keys: list[str], path: Path) -> NDArray[np.int64]:
    """Places among `keys` of the images that `path` names, in its order; each only once."""
    index_of = {key: i for i, key in enumerate(keys)}
    found: dict[int, None] = {}
    for name in names:
        if not isinstance(name, str) or (index := index_of.get(_key(name))) is None:
            raise DataCorruptError(f"{path}: {shortened(name)} is not among the training images")
        if index in found:
            raise DataCorruptError(f"{path} lists {shortened(name)} twice")
        found[index] = None
    return np.array(list(found), np.int64)
