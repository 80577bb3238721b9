"""Labels as a web search gives them: some wrong, some of pictures that belong to no class at all.

The set has WebVision's layout and, beside it, arrays for readers that hold a set in memory. What is
true of each training picture lies in secret/web_truth.json, which only scoring code may read.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    save_arrays,
    write_lines,
    write_list,
    write_pictures,
)
from benchmarks.miniatures.emoji.subgroup_labels import LabelledPictures
from shared.data import fetching
from shared.data.images import ArrayImages
from shared.data.readers.small_images import FASHION_MNIST_CLASSES
from shared.data.readers.small_images import fashion_mnist as read_fashion_mnist
from shared.nn.building import trusted_function

VERSION = 1  # raise it with any change of the sets
WRONG, CONFUSED, OUTSIDE = 0.3, 0.5, 0.2
HELD_OUT = ("sandal", "bag")
LOOK_ALIKES = {
    **{"T-shirt/top": "shirt", "pullover": "coat", "trouser": "dress", "sneaker": "ankle boot"},
    **{"shirt": "T-shirt/top", "coat": "pullover", "dress": "trouser", "ankle boot": "sneaker"},
}
GOOGLE_SHARE = 2 / 3  # of Fashion-MNIST's training pictures; the others are "flickr"


def fashion_mnist(
    root: str | Path,
    fashion_root: str | Path,
    seed: int,
    per_class: int = 1000,
    tuning_per_class: int = 250,
    clean_source: str | Callable[[str | Path], Provenance] = fetching.fashion_mnist,
) -> Provenance:
    """A noisy web of eight Fashion-MNIST classes (docs/papers/mopro.md, section 11).

    `per_class` training pictures of each, 30 % with a wrong label (half any other class, half the
    look-alike); pictures of the two held-out classes with random labels make up 20 % of the set.
    Clean are the test pictures of the eight classes and a tuning set of other training pictures.
    `clean_source`, or what it names, makes the four IDX files present in `fashion_root`.
    """
    made = trusted_function(clean_source) if isinstance(clean_source, str) else clean_source
    clean = made(fashion_root)
    sizes = {"per_class": per_class, "tuning_per_class": tuning_per_class}
    checksums = {name: entry["files"] for name, entry in clean.items()}
    recipe = {"version": VERSION, "seed": seed, **sizes, "clean": checksums}

    def build(folder: Path) -> None:
        _build_fashion(folder, Path(fashion_root), seed, per_class, tuning_per_class)

    files = build_once(root, "web", recipe, build)
    return {**clean, "fashion-mnist-web": {"files": files, "licence": "MIT"}}


def noisy_labels(
    truth: NDArray[np.int64], look_alike: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], list[str]]:
    """Give a share WRONG of true labels (N,) another one; returns labels (N,) and kinds. The share
    CONFUSED of the wrong ones becomes `look_alike[label]` (K,), the rest any other class."""
    classes = len(look_alike)
    chosen = generator.permutation(len(truth))[: round(WRONG * len(truth))]
    confused, uniform = np.split(chosen, [round(CONFUSED * len(chosen))])
    web, kinds = truth.copy(), np.full(len(truth), "clean", "<U8")
    web[confused] = look_alike[truth[confused]]
    kinds[confused] = "confused"
    web[uniform] = (truth[uniform] + generator.integers(1, classes, len(uniform))) % classes
    kinds[uniform] = "uniform"
    return web, kinds.tolist()


def write_web(
    folder: Path,
    train: LabelledPictures,
    tuning: LabelledPictures,
    test: LabelledPictures,
    class_names: Sequence[str],
    look_alike: NDArray[np.int64],
    generator: np.random.Generator,
) -> None:
    """Give training pictures, of which those of no class come last, the labels of a web and write
    WebVision's lists and pictures, arrays and the secret truth into `folder`.

    Class k is confused with `look_alike[k]` (K,). The names of files are unique and tell nothing of
    the label.
    """
    known = np.flatnonzero(train.labels >= 0)
    web, kinds = noisy_labels(train.labels[known], look_alike, generator)
    rows = generator.permutation(len(train.labels))
    outside = len(train.labels) - len(known)
    web = np.concatenate([web, generator.integers(0, len(class_names), outside)])
    kinds += ["ood"] * outside
    labels, google = web[rows], round(GOOGLE_SHARE * len(rows))
    folders = [name.lower().replace("/", "-").replace(" ", "-") for name in class_names]
    paths = [
        f"{'google' if place < google else 'flickr'}/{folders[label]}/{train.paths[row]}"
        for place, (label, row) in enumerate(zip(labels, rows, strict=True))
    ]
    write_pictures(folder, paths, train.images[rows])
    for name, own in (("google", slice(google)), ("flickr", slice(google, None))):
        write_list(folder / f"info/train_filelist_{name}.txt", paths[own], labels[own])
    write_lines(folder / "info" / "class_names.txt", class_names)
    save_arrays(folder / "web_train.npz", train.images[rows], labels, class_names, paths)
    for clean, name, split, below in (
        (test, "val_filelist", "test", "val_images_256"),  # WebVision scores on its val list
        (tuning, "tuning_filelist", "val", "tuning_images"),
    ):
        write_pictures(folder / below, clean.paths, clean.images)
        write_list(folder / f"info/{name}.txt", clean.paths, clean.labels)
        arrays = folder / f"web_{split}.npz"
        below_root = [f"{below}/{file}" for file in clean.paths]
        save_arrays(arrays, clean.images, clean.labels, class_names, below_root)
    truth = {
        path: {"label": None if (true := int(train.labels[row])) < 0 else true, "kind": kinds[row]}
        for path, row in zip(paths, rows, strict=True)
    }
    (folder / "secret").mkdir()
    (folder / "secret" / "web_truth.json").write_text(json.dumps(truth, indent=0))


def _build_fashion(
    folder: Path, fashion_root: Path, seed: int, per_class: int, tuning_per_class: int
) -> None:
    class_names = [name for name in FASHION_MNIST_CLASSES if name not in HELD_OUT]
    labels = {name: label for label, name in enumerate(class_names)}
    label_of = np.array([labels.get(name, -1) for name in FASHION_MNIST_CLASSES])
    train, test = (read_fashion_mnist(fashion_root, split) for split in ("train", "test"))
    generator = generator_of(seed, "fashion web")
    true = label_of[train.labels]
    of_class = [generator.permutation(np.flatnonzero(true == c)) for c in range(len(class_names))]
    fewest = min(len(rows) for rows in of_class)
    outside = generator.permutation(np.flatnonzero(true < 0))[: _outside_count(per_class * 8)]
    if fewest < per_class + tuning_per_class or len(outside) < _outside_count(per_class * 8):
        has = f"{fewest} in the smallest class, {len(outside)} held out"
        asked = f"per_class={per_class} and tuning_per_class={tuning_per_class}"
        raise ValueError(f"{asked} ask for more pictures than {fashion_root} has: {has}")
    inside = np.concatenate([rows[:per_class] for rows in of_class])
    spare = np.concatenate([rows[per_class : per_class + tuning_per_class] for rows in of_class])
    look_alike = np.array([labels[LOOK_ALIKES[name]] for name in class_names])
    rows = np.concatenate([inside, outside])
    scored = np.flatnonzero(label_of[test.labels] >= 0)

    def pictures(source: ArrayImages, chosen: NDArray[np.int64], split: str) -> LabelledPictures:
        files = [f"{split}_{row:05d}.png" for row in chosen]
        return LabelledPictures(source.images[chosen], label_of[source.labels[chosen]], files)

    write_web(
        folder,
        pictures(train, rows, "train"),
        pictures(train, spare, "train"),
        pictures(test, scored, "test"),
        class_names,
        look_alike,
        generator,
    )


def _outside_count(inside: int) -> int:
    """Pictures of no class that make up the share OUTSIDE of the whole set."""
    return round(inside * OUTSIDE / (1 - OUTSIDE))
