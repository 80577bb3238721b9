"""Labels as a web search gives them: some wrong, some of pictures that belong to no class at all.

Both sets have WebVision's layout and, beside it, arrays for readers that hold a set in memory. What
is true of each training picture lies in secret/web_truth.json, which only scoring code may read.
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
from benchmarks.miniatures.emoji.packages import LICENCE
from benchmarks.miniatures.emoji.render import renderings
from benchmarks.miniatures.emoji.subgroup_labels import (
    LabelledPictures,
    class_subgroups,
    labelled_pictures,
    subgroups,
)
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
GOOGLE = ("noto", "noto1", "twemoji", "openmoji")
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


def emoji(root: str | Path, emoji_root: str | Path, seed: int) -> Provenance:
    """A noisy web of the emoji sub-groups (docs/papers/mopro.md, section 11).

    All training pictures, 30 % with a wrong label (half any other class, half the sub-group of the
    same group that looks nearest); symbols and small sub-groups with random labels make up 20 % of
    the set. Clean are the validation artist (tuning) and the held-out artist (test).
    """
    clean = subgroups(emoji_root)
    arrays = {k: v for k, v in clean["emoji-subgroups"]["files"].items() if k.startswith("emoji_t")}
    recipe = {"version": VERSION, "seed": seed, "clean": arrays}
    files = build_once(root, "web", recipe, lambda folder: _build_emoji(folder, seed))
    return {**clean, "emoji-web": {"files": files, "licence": LICENCE}}


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


def nearest_of_group(
    images: NDArray[np.uint8], labels: NDArray[np.int64], groups: Sequence[str]
) -> NDArray[np.int64]:
    """(K,) for each class the other one of its group whose mean picture is nearest; where a group
    has a single class, the nearest of all. `groups` names the group of each class."""
    of_class = [images[labels == label].astype(np.float64) for label in range(len(groups))]
    means = np.stack([pictures.mean(0).ravel() for pictures in of_class])
    distances = np.square(means[:, None] - means[None]).mean(2)
    np.fill_diagonal(distances, np.inf)
    names = np.array(groups)
    inside = np.where(names[:, None] == names[None], distances, np.inf)
    alone = np.isinf(inside.min(1))
    return np.where(alone, distances.argmin(1), inside.argmin(1)).astype(np.int64)


def write_web(
    folder: Path,
    train: LabelledPictures,
    tuning: LabelledPictures,
    test: LabelledPictures,
    class_names: Sequence[str],
    look_alike: NDArray[np.int64],
    engine: Callable[[int, str], str],
    generator: np.random.Generator,
) -> None:
    """Give training pictures, of which those of no class come last, the labels of a web and write
    WebVision's lists and pictures, arrays and the secret truth into `folder`.

    Class k is confused with `look_alike[k]` (K,). `engine` says "google" or "flickr" of a picture's
    place in the mixed set and its file name, which is unique and tells nothing of the label.
    """
    names = [Path(path).name for path in train.paths]
    known = np.flatnonzero(train.labels >= 0)
    web, kinds = noisy_labels(train.labels[known], look_alike, generator)
    mixed = generator.permutation(len(train.labels))
    outside = len(train.labels) - len(known)
    web = np.concatenate([web, generator.integers(0, len(class_names), outside)])
    kinds += ["ood"] * outside
    engines = [engine(place, names[row]) for place, row in enumerate(mixed)]
    order = np.argsort([name != "google" for name in engines], kind="stable")
    rows, engines = mixed[order], [engines[place] for place in order]
    labels = web[rows]
    folders = [name.lower().replace("/", "-").replace(" ", "-") for name in class_names]
    paths = [
        f"{name}/{folders[label]}/{names[row]}"
        for name, label, row in zip(engines, labels, rows, strict=True)
    ]
    write_pictures(folder, paths, train.images[rows])
    for name in ("google", "flickr"):
        own = [place for place, path in enumerate(paths) if path.startswith(f"{name}/")]
        file = folder / f"info/train_filelist_{name}.txt"
        write_list(file, [paths[place] for place in own], labels[own])
    write_lines(folder / "info" / "class_names.txt", class_names)
    save_arrays(folder / "web_train.npz", train.images[rows], labels, class_names, paths)
    for clean, name, split, below in (
        (test, "val_filelist", "test", "val_images_256"),  # WebVision scores on its val list
        (tuning, "tuning_filelist", "val", "tuning_images"),
    ):
        files = [Path(path).name for path in clean.paths]
        write_pictures(folder / below, files, clean.images)
        write_list(folder / f"info/{name}.txt", files, clean.labels)
        arrays = folder / f"web_{split}.npz"
        below_root = [f"{below}/{file}" for file in files]
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
    google = round(GOOGLE_SHARE * len(rows))

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
        lambda place, name: "google" if place < google else "flickr",
        generator,
    )


def _build_emoji(folder: Path, seed: int) -> None:
    drawn = renderings()
    class_names = class_subgroups(drawn.concepts)
    inside = labelled_pictures(drawn, "train", class_names)
    others = labelled_pictures(drawn, "train", None)
    generator = generator_of(seed, "emoji web")
    count = min(_outside_count(len(inside.labels)), len(others.labels))
    outside = others.rows(np.sort(generator.permutation(len(others.labels))[:count]))
    group_of = {concept.subgroup: concept.group for concept in drawn.concepts}
    groups = [group_of[name] for name in class_names]
    look_alike = nearest_of_group(inside.images, inside.labels, groups)
    images = np.concatenate([inside.images, outside.images])
    labels = np.concatenate([inside.labels, outside.labels])
    train = LabelledPictures(images, labels, inside.paths + outside.paths)
    write_web(
        folder,
        train,
        labelled_pictures(drawn, "val", class_names),
        labelled_pictures(drawn, "test", class_names),
        class_names,
        look_alike,
        lambda place, name: "google" if name.split("_")[0] in GOOGLE else "flickr",
        generator,
    )
    (folder / "ATTRIBUTION.md").write_text(drawn.attribution)


def _outside_count(inside: int) -> int:
    """Pictures of no class that make up the share OUTSIDE of the whole set."""
    return round(inside * OUTSIDE / (1 - OUTSIDE))
