"""Readers of data sets held in memory, in their public on-disk formats."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.images import ArrayImages, ImageSet
from shared.data.readers.files import integers, most_unpacked, open_data, read_data, refusing
from shared.data.readers.folders import known_split, text_lines
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.data.splits import Split

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def fashion_mnist(root: str | Path, split: str) -> ArrayImages:
    """Read IDX files (plain or .gz): (N, 28, 28) grey."""
    stem = {"train": "train", "test": "t10k"}[known_split(split, "train", "test")]
    parts = []
    for part, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
        path = Path(root) / f"{stem}-{part}"
        packed = path.with_name(f"{path.name}.gz")
        parts.append(read_idx(path if os.path.lexists(path) else packed, dimensions))
    images, labels = parts
    return ArrayImages(images, labels, FASHION_MNIST_CLASSES, f"{root} ({split})")


def cifar10(root: str | Path, split: str) -> ArrayImages:
    """Read `cifar-10-batches-py`: (N, 32, 32, 3) RGB."""
    train = known_split(split, "train", "test") == "train"
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    return _cifar(Path(root) / "cifar-10-batches-py", names, "labels", "batches.meta")


def cifar100(root: str | Path, split: str) -> ArrayImages:
    """Read `cifar-100-python` with fine labels: (N, 32, 32, 3) RGB."""
    names = [known_split(split, "train", "test")]
    return _cifar(Path(root) / "cifar-100-python", names, "fine_labels", "meta")


def stl10(root: str | Path, split: str) -> ArrayImages:
    """Read `stl10_binary`: (N, 96, 96, 3) RGB.

    "train" is the 5,000 labelled images followed by the 100,000 unlabelled ones (label -1), among
    which `stl10_fold_split` chooses.
    """
    folder = Path(root) / "stl10_binary"
    parts = ["train", "unlabeled"] if known_split(split, "train", "test") == "train" else ["test"]
    images, labels = [], []
    for part in parts:
        path = folder / f"{part}_X.bin"
        raw = np.frombuffer(read_data(path), np.uint8)
        if raw.size == 0 or raw.size % (3 * 96 * 96):
            raise DataCorruptError(f"{path}: {raw.size} bytes is not a number of 96 px RGB images")
        # Official layout: channel, column, row.
        images.append(raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1))
        if part == "unlabeled":
            labels.append(np.full(len(images[-1]), -1))
        else:
            path = folder / f"{part}_y.bin"
            values = np.frombuffer(read_data(path), np.uint8)
            labels.append(_from_one(values, len(images[-1]), path))
    path = folder / "class_names.txt"
    if len(names := text_lines(path)) != 10:
        raise DataCorruptError(f"{path}: {len(names)} names of 10 classes")
    joint = np.ascontiguousarray(np.concatenate(images))
    return ArrayImages(joint, np.concatenate(labels), names, f"{folder} ({split})")


def stl10_fold_split(
    images: ImageSet,
    candidates: NDArray[np.int64],
    num_labels: int,
    seed: int,
    root: str | Path,
    fold: int | None = None,
) -> Split:
    """Label the images of an official fold, by default seed % 10; the others have no label."""
    path = Path(root) / "stl10_binary" / "fold_indices.txt"
    with refusing(f"{path}: not lists of images"):
        folds = [integers([int(place) for place in line.split()]) for line in text_lines(path)]
    if any(fold.size and fold.max() >= len(images) for fold in folds) or not folds:
        raise DataCorruptError(f"{path}: no folds, or images that STL-10 does not have")
    number = seed % len(folds) if fold is None else fold
    if not 0 <= number < len(folds) or len(folds[number]) != num_labels:
        has = f"{len(folds)} folds of {sorted({len(f) for f in folds})} images"
        raise ValueError(f"{path}: it has {has}, not fold={number} of num_labels={num_labels}")
    return Split(np.sort(folds[number]), candidates[images.labels[candidates] < 0])


def svhn(root: str | Path, split: str, extra: bool = False) -> ArrayImages:
    """Read the cropped-digit .mat files: (N, 32, 32, 3) RGB; with `extra` "train" goes on with the
    531,131 easier digits."""
    train = known_split(split, "train", "test") == "train"
    names = ["train", "extra"] if train and extra else [split]
    parts = [_svhn(Path(root) / f"{name}_32x32.mat") for name in names]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ArrayImages(images, labels, [str(d) for d in range(10)], f"{root} ({split})")


def _svhn(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from scipy.io import loadmat, whosmat

    # scipy raises many kinds of errors for damaged files.
    with open_data(path) as file, refusing(f"{path}: not a readable SVHN file", Exception):
        declared = {name: (shape, kind) for name, shape, kind in whosmat(file)}
        (*size, count), kind = declared["X"]
        if size != [32, 32, 3] or kind != "uint8" or 3072 * count > most_unpacked(file):
            raise ValueError(f"X is {kind} {declared['X'][0]}")
        content = loadmat(file, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return images, (_from_one(labels, len(images), path) + 1) % 10


def read_idx(path: Path, dimensions: int = 3) -> NDArray[np.uint8]:
    """Read one unsigned-byte IDX file (big-endian header), gzipped or plain."""
    content = read_data(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise DataCorruptError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    if len(content) != header + math.prod(shape):
        told = f"{len(content)} bytes are not the {shape} values of its header"
        raise DataCorruptError(f"{path}: {told}; fetch it anew")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and lists, executing nothing; bytes keys become str."""
    content = read_plain_pickle(path, arrays=True, encoding="bytes")
    if not isinstance(content, dict):
        raise DataCorruptError(f"{path} is refused: no dict; fetch it anew")
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}


def _cifar(folder: Path, names: list[str], label_key: str, meta: str) -> ArrayImages:
    images, labels = [], []
    for name in names:
        content = read_pickle(folder / name)
        with refusing(f"{folder / name}: no `data` (N, 3072) and `{label_key}`"):
            pixels, labelled = content["data"], content[label_key]
            if pixels.dtype != np.uint8:
                raise ValueError(f"data of {pixels.dtype}")
            images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(integers(labelled))
    content = read_pickle(folder / meta)
    with refusing(f"{folder / meta}: no list of `label_names` or `fine_label_names`"):
        class_names = content.get("label_names") or content["fine_label_names"]
        if not isinstance(class_names, list):
            raise TypeError(f"it is a {type(class_names).__name__}")
        decoded = [n if isinstance(n, str) else n.decode("latin-1") for n in class_names]
    joint = np.ascontiguousarray(np.concatenate(images))
    return ArrayImages(joint, np.concatenate(labels), decoded, str(folder))


def _from_one(labels: NDArray, count: int, path: Path) -> NDArray[np.int64]:
    """Labels from 0, of a file that counts classes from 1 to 10."""
    right = labels.dtype.kind in "iuf" and np.isin(labels, np.arange(1, 11)).all()
    if not right or labels.shape != (count,):
        raise DataCorruptError(f"{path}: expected {count} labels from 1 to 10")
    return labels.astype(np.int64) - 1
