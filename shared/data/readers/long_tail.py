"""Long-tailed training sets (docs/papers/iccl.md, sections 3.2 and 6)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.data.images import ArrayImages, FolderImages
from shared.data.readers import small_images
from shared.data.readers.files import integers, read_json, refusing
from shared.data.readers.folders import known_split, listed_paths


def long_tail_counts(
    n_max: int, ratio: float, classes: int, profile: str = "exponential"
) -> NDArray[np.int64]:
    """Return how many images each class keeps, (classes,), largest first.

    "exponential": floor(n_max (1/ratio)^(k/(classes-1))); "step": n_max for the first half of the
    classes and n_max / ratio for the others (section 6.1). The floor is that of the float64 product
    in this order, which may be one below an exact value.
    """
    if ratio < 1 or n_max < 1 or classes < 1:
        raise ValueError(f"n_max={n_max}, ratio={ratio}, classes={classes}: each is at least 1")
    if profile == "exponential":
        places = [k / (classes - 1.0) if classes > 1 else 0.0 for k in range(classes)]
    elif profile == "step":
        places = [float(k >= classes // 2) for k in range(classes)]
    else:
        raise ValueError(f"profile={profile!r}: expected exponential or step")
    counts = np.array([int(n_max * ((1 / ratio) ** place)) for place in places], np.int64)
    if counts.min() < 1:
        raise ValueError(f"n_max={n_max} at ratio={ratio} leaves a class without images")
    return counts


def class_aware_weights(
    counts: NDArray[np.int64], gamma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probability of drawing one image of class k, and of drawing class k, both (K,).

    n_k^-gamma / sum_j n_j^(1-gamma) and n_k^(1-gamma) / sum_j n_j^(1-gamma) (section 3.2): gamma 0
    is class-agnostic, 1 class-balanced, 2 reversed. A class without images has probability 0.
    """
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    if not present.any():
        raise ValueError("no class has any image")
    image = np.zeros(len(counts))
    image[present] = counts[present] ** -gamma
    image /= (counts * image).sum()
    return image, counts * image


def cifar_lt(
    root: str | Path,
    split: str,
    classes: int = 10,
    ratio: float = 100,
    profile: str = "exponential",
    seed: int = 0,
) -> ArrayImages:
    """Read CIFAR-10-LT or CIFAR-100-LT: a long-tailed training set and the balanced "test" set.

    The images are those of the public code: class by class in label order, each class shuffled by
    numpy's legacy generator, started once.
    """
    if classes not in (10, 100):
        raise ValueError(f"classes={classes}: CIFAR has 10 or 100")
    images = (small_images.cifar10 if classes == 10 else small_images.cifar100)(root, split)
    if split != "train":
        return images
    counts = long_tail_counts(len(images) // classes, ratio, classes, profile)
    generator = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(images.labels == label)
        generator.shuffle(members)
        chosen.append(members[:count])
    return _select(images, np.concatenate(chosen), f"{root} ({classes} classes, ratio {ratio:g})")


def fashion_mnist_lt(
    root: str | Path,
    split: str,
    n_max: int = 1000,
    ratio: float = 100,
    seed: int = 0,
    profile: str = "exponential",
    val_per_class: int = 100,
    balanced_per_class: int = 500,
) -> ArrayImages:
    """Read a long-tailed Fashion-MNIST of at most `n_max` images per class.

    `seed` draws the images and which class gets which count, so that over seeds a class's
    difficulty is not tied to its rarity. "val" and "balanced" (for a probe) have equally many other
    training images of each class; "test" is the official one.
    """
    if known_split(split, "train", "val", "balanced", "test") == "test":
        return small_images.fashion_mnist(root, "test")
    images = small_images.fashion_mnist(root, "train")
    classes = len(images.class_names)
    smallest = int(np.bincount(images.labels, minlength=classes).min())
    needed = n_max + val_per_class + balanced_per_class
    if needed > smallest:
        sizes = "n_max + val_per_class + balanced_per_class"
        raise ValueError(f"{sizes} = {needed}, but a class has {smallest} images: lower one")
    generator = np.random.default_rng([seed, 0x17A11])
    counts = long_tail_counts(n_max, ratio, classes, profile)[generator.permutation(classes)]
    chosen = []
    for label, count in enumerate(counts):
        members = generator.permutation(np.flatnonzero(images.labels == label))
        # The parts begin at fixed places: a longer tail changes neither "val" nor "balanced".
        begin, length = {
            "train": (0, count),
            "val": (n_max, val_per_class),
            "balanced": (n_max + val_per_class, balanced_per_class),
        }[split]
        chosen.append(members[begin : begin + length])
    return _select(images, np.sort(np.concatenate(chosen)), f"{root} ({split}, long tail)")


def inaturalist2018(root: str | Path, split: str, max_corrupt: float = 0.01) -> FolderImages:
    """Read iNaturalist 2018 from `root/train2018.json` and `root/val2018.json` ("val", "test")."""
    every = known_split(split, "train", "val", "test") == "train"
    path = Path(root) / f"{'train' if every else 'val'}2018.json"
    content = read_json(path)
    with refusing(f"{path}: not a file of iNaturalist 2018"):
        images, annotations = content["images"], content["annotations"]
        if [i["id"] for i in images] != [a["image_id"] for a in annotations]:
            raise ValueError("the n-th annotation is not of the n-th image")
        listed = [image["file_name"] for image in images]
        labels = integers([a["category_id"] for a in annotations])
        categories = sorted(content["categories"], key=lambda c: c["id"])
        names = [str(category["name"]) for category in categories]
        if [category["id"] for category in categories] != list(range(len(categories))):
            raise ValueError("the category ids are not 0, 1, 2, ...")
    paths = listed_paths(path.parent, listed, path)
    return FolderImages(paths, labels, names, str(path), max_corrupt, every_class=every)


def _select(images: ArrayImages, indices: NDArray[np.int64], origin: str) -> ArrayImages:
    return ArrayImages(images.images[indices], images.labels[indices], images.class_names, origin)
