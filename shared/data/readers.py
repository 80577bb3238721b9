"""Readers of data sets held in memory, in their public on-disk formats.

Each is a function (root, split) -> `ArrayImages`. Missing and damaged files raise errors that name
the file and say what to do.
"""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.images import ArrayImages, DataCorruptError, DataNotFoundError, ImageSet
from shared.data.splits import Split

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist(root: str | Path, split: str) -> ArrayImages:
    """Read IDX files (plain or .gz): (N, 28, 28) grey. `split` is "train" or "test"."""
    stem = {"train": "train", "test": "t10k"}[_known(split, "train", "test")]
    images, labels = (
        read_idx(find(Path(root), f"{stem}-{part}", "fashion-mnist", suffixes=("", ".gz")))
        for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return ArrayImages(images, labels, FASHION_MNIST_CLASSES, f"{root} ({split})")


def cifar10(root: str | Path, split: str) -> ArrayImages:
    """Read `cifar-10-batches-py`: (N, 32, 32, 3) RGB. `split` is "train" or "test"."""
    train = _known(split, "train", "test") == "train"
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    return _cifar(Path(root) / "cifar-10-batches-py", names, "labels", "batches.meta", "cifar-10")


def cifar100(root: str | Path, split: str) -> ArrayImages:
    """Read `cifar-100-python` with fine labels: (N, 32, 32, 3) RGB."""
    names = [_known(split, "train", "test")]
    return _cifar(Path(root) / "cifar-100-python", names, "fine_labels", "meta", "cifar-100")


def stl10(root: str | Path, split: str) -> ArrayImages:
    """Read `stl10_binary`: (N, 96, 96, 3) RGB.

    The split "train" is the 5,000 labelled images followed by the 100,000 unlabelled ones (label
    -1); `stl10_fold_split` chooses among them. "test" is the 8,000 test images.
    """
    folder = Path(root) / "stl10_binary"
    parts = ["train", "unlabeled"] if _known(split, "train", "test") == "train" else ["test"]
    images, labels = [], []
    for part in parts:
        path = find(folder, f"{part}_X.bin", "stl-10")
        raw = np.fromfile(path, np.uint8)
        if raw.size == 0 or raw.size % (3 * 96 * 96):
            raise DataCorruptError(f"{path}: {raw.size} bytes is not a number of 96 px RGB images")
        # Official layout: channel, column, row.
        images.append(raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1))
        if part == "unlabeled":
            labels.append(np.full(len(images[-1]), -1))
        else:
            labels.append(np.fromfile(find(folder, f"{part}_y.bin", "stl-10"), np.uint8) - 1.0)
    names = _lines(find(folder, "class_names.txt", "stl-10"))
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
    """Label the images of an official fold; unlabelled are the images without any label.

    `fold` None takes fold seed % 10. The official list has ten folds of 1,000 images.

    Raises:
        ValueError: the fold does not exist or has another size than `num_labels`.
    """
    path = find(Path(root) / "stl10_binary", "fold_indices.txt", "stl-10")
    folds = [np.array(line.split(), np.int64) for line in _lines(path)]
    number = seed % len(folds) if fold is None else fold
    if not 0 <= number < len(folds) or len(folds[number]) != num_labels:
        sizes = sorted({len(f) for f in folds})
        raise ValueError(
            f"{path}: fold={number} with num_labels={num_labels} asked for; the file has "
            f"{len(folds)} folds of {sizes} images"
        )
    unlabelled = candidates[images.labels[candidates] < 0]
    return Split(np.sort(folds[number]), unlabelled)


def svhn(root: str | Path, split: str) -> ArrayImages:
    """Read the cropped-digit .mat files: (N, 32, 32, 3) RGB; also has a split "extra"."""
    from scipy.io import loadmat

    path = find(Path(root), f"{_known(split, 'train', 'test', 'extra')}_32x32.mat", "svhn")
    try:
        content = loadmat(path)
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy raises many kinds for damaged files
        raise DataCorruptError(
            f"{path}: not a readable SVHN file ({error}); fetch it anew"
        ) from error
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return ArrayImages(images, labels % 10, [str(d) for d in range(10)], str(path))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one unsigned-byte IDX file (big-endian header), gzipped or plain.

    Raises:
        DataCorruptError: wrong magic number, truncated, or more bytes than the header announces.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataCorruptError(f"{path}: damaged gzip file ({error}); fetch it anew") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataCorruptError(f"{path}: not an IDX file of unsigned bytes")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataCorruptError(f"{path}: ends within its header; delete it and fetch it anew")
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    if len(content) != header + int(np.prod(shape)):
        raise DataCorruptError(
            f"{path}: {len(content)} bytes don't hold the {shape} values of its header "
            "(truncated?); delete it and fetch it anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Admits what the official pickles contain: numpy arrays and Python's basic types."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in (
            "ndarray",
            "dtype",
            "_reconstruct",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no image file needs")


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and lists, executing nothing; bytes keys become str.

    Raises:
        DataCorruptError: truncated, no pickle of a dict, or it refers to anything but arrays.
    """
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataCorruptError(f"{path}: refused ({error}); fetch it anew") from error


def find(folder: Path, name: str, source: str, suffixes: tuple[str, ...] = ("",)) -> Path:
    """Return the first existing folder/name+suffix.

    Raises:
        DataNotFoundError: none exists; says where and how to provide it.
    """
    for suffix in suffixes:
        path = folder / (name + suffix)
        if path.is_file():
            return path
    raise DataNotFoundError(
        f"{folder / name} not found. Run `make data METHOD=...` for an experiment that uses "
        f"{source}, or place the official {source} files there (another place: data_root=DIR or "
        "TENFOLD_DATA=DIR)"
    )


def _cifar(folder: Path, names: list[str], label_key: str, meta: str, source: str) -> ArrayImages:
    images, labels = [], []
    for name in names:
        path = find(folder, name, source)
        content = read_pickle(path)
        try:
            images.append(content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(content[label_key], np.int64))
        except (KeyError, AttributeError, ValueError) as error:
            raise DataCorruptError(
                f"{path}: no `data` (N, 3072) and `{label_key}` ({error!r})"
            ) from error
    content = read_pickle(find(folder, meta, source))
    class_names = content.get("label_names") or content.get("fine_label_names") or []
    joint = np.ascontiguousarray(np.concatenate(images))
    decoded = [n.decode() if isinstance(n, bytes) else n for n in class_names]
    return ArrayImages(joint, np.concatenate(labels), decoded, str(folder))


def _known(split: str, *splits: str) -> str:
    if split not in splits:
        raise ValueError(f"split={split!r}: expected one of {', '.join(splits)}")
    return split


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]
