"""Readers of the public formats: content, and the error for every kind of damage."""

import gzip
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from benchmarks.miniatures.synthetic import idx_bytes
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import ArrayImages, FolderImages
from shared.data.readers import small_images as readers
from shared.data.readers.imagenet import imagenet, split_file
from shared.data.splits import per_class_split, seeded_subset

RANDOM = np.random.default_rng(0)


def array_images(per_class: int = 6, classes: int = 3) -> ArrayImages:
    labels = np.repeat(np.arange(classes), per_class)
    pixels = RANDOM.integers(0, 256, (len(labels), 4, 4, 3), np.uint8)
    return ArrayImages(pixels, labels, [f"c{i}" for i in range(classes)], "test")


# --- Fashion-MNIST -----------------------------------------------------------------------------


def test_fashion_mnist_plain_and_gz(tmp_path: Path) -> None:
    write_synthetic(tmp_path, train=40, test=20)
    plain = readers.fashion_mnist(tmp_path, "train")
    assert plain.images.shape == (40, 28, 28)
    assert np.bincount(plain.labels).tolist() == [4] * 10
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = readers.fashion_mnist(tmp_path, "train")
    np.testing.assert_array_equal(packed.images, plain.images)
    assert len(readers.fashion_mnist(tmp_path, "test")) == 20
    with pytest.raises(ValueError, match="expected one of train, test"):
        readers.fashion_mnist(tmp_path, "val")


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    content = idx_bytes(np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataNotFoundError, match=r"train-images-idx3-ubyte.*make data METHOD"):
        readers.fashion_mnist(tmp_path, "train")
    path = tmp_path / "x"
    for damaged in (content[:-1], content + b"0", b"\x01" + content[1:], content[:9]):
        path.write_bytes(damaged)
        with pytest.raises(DataCorruptError, match=str(path)):
            readers.read_idx(path)


def test_empty_class_and_wrong_counts() -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(DataCorruptError, match="no image of class 'b'"):
        ArrayImages(pixels, np.array([0, 2]), "abc", "here")
    with pytest.raises(DataCorruptError, match="2 images but 3 labels"):
        ArrayImages(pixels, np.array([0, 1, 2]), "abc", "here")
    with pytest.raises(DataCorruptError, match="label 3, but 2 classes"):
        ArrayImages(pixels, np.array([0, 3]), "ab", "here")
    with pytest.raises(DataCorruptError, match="no images"):
        ArrayImages(pixels[:0], np.array([]), "ab", "here")
    with pytest.raises(DataNotFoundError, match="no images"):
        FolderImages([], np.array([]), [], "here")


# --- CIFAR, STL-10, SVHN -----------------------------------------------------------------------


def write_cifar(root: Path, names: list[str], label_key: str, meta: str, meta_key: str) -> None:
    root.mkdir()
    for name in names:
        rows = RANDOM.integers(0, 256, (10, 3072), np.uint8)
        content = {b"data": rows, label_key.encode(): list(range(10))}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    classes = [f"class{i}".encode() for i in range(10)]
    (root / meta).write_bytes(pickle.dumps({meta_key.encode(): classes}, protocol=2))


def test_cifar(tmp_path: Path) -> None:
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, [*batches, "test_batch"], "labels", "batches.meta", "label_names")
    train = readers.cifar10(tmp_path, "train")
    assert train.images.shape == (50, 32, 32, 3)
    assert train.class_names[3] == "class3"
    first = pickle.loads((folder / "data_batch_1").read_bytes())[b"data"][0]
    np.testing.assert_array_equal(train.images[0, 2, 5], first.reshape(3, 32, 32)[:, 2, 5])
    assert len(readers.cifar10(tmp_path, "test")) == 10

    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, ["train", "test"], "fine_labels", "meta", "fine_label_names")
    assert len(readers.cifar100(tmp_path, "train")) == 10
    (folder / "train").write_bytes(pickle.dumps({b"data": np.zeros((2, 5), np.uint8)}))
    with pytest.raises(DataCorruptError, match="no `data`"):
        readers.cifar100(tmp_path, "train")
    (folder / "train").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataCorruptError, match="train is refused: no dict"):
        readers.cifar100(tmp_path, "train")


def test_stl10_and_its_folds(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    counts = {"train": 10, "unlabeled": 7, "test": 10}
    pixels = {k: RANDOM.integers(0, 256, (n, 3, 96, 96), np.uint8) for k, n in counts.items()}
    for part, values in pixels.items():
        values.tofile(folder / f"{part}_X.bin")
    for part in ("train", "test"):
        np.arange(1, 11, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    (folder / "fold_indices.txt").write_text("3 1 \n0 2 \n")
    train = readers.stl10(tmp_path, "train")
    assert train.images.shape == (17, 96, 96, 3)
    np.testing.assert_array_equal(train.images[2, 40, 7], pixels["train"][2, :, 7, 40])
    assert train.labels.tolist() == [*range(10), *[-1] * 7]
    everything = np.arange(17)
    split = readers.stl10_fold_split(train, everything, num_labels=2, seed=2, root=tmp_path)
    assert split.labelled.tolist() == [1, 3]
    assert split.unlabelled.tolist() == list(range(10, 17))
    with pytest.raises(ValueError, match="2 folds of \\[2\\] images"):
        readers.stl10_fold_split(train, everything, num_labels=3, seed=0, root=tmp_path)
    (folder / "test_X.bin").write_bytes(b"123")
    with pytest.raises(DataCorruptError, match=r"test_X.bin: 3 bytes"):
        readers.stl10(tmp_path, "test")


def test_svhn(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (32, 32, 3, 10), np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.arange(1, 11)[:, None]})
    images = readers.svhn(tmp_path, "train")
    assert images.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    np.testing.assert_array_equal(images.images[4], pixels[..., 4])
    more = RANDOM.integers(0, 256, (32, 32, 3, 2), np.uint8)
    savemat(tmp_path / "extra_32x32.mat", {"X": more, "y": np.array([[10], [4]])})
    both = readers.svhn(tmp_path, "train", extra=True)
    assert both.labels.tolist() == [*images.labels.tolist(), 0, 4]
    np.testing.assert_array_equal(both.images[10], more[..., 0])
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.arange(1, 11)[:, None]})
    assert len(readers.svhn(tmp_path, "test", extra=True)) == 10


# --- splits ------------------------------------------------------------------------------------


def test_per_class_split() -> None:
    images = array_images()
    candidates = seeded_subset(len(images), None, 0)
    split = per_class_split(images, candidates, 6, seed=1)
    assert np.bincount(images.labels[split.labelled]).tolist() == [2, 2, 2]
    assert sorted([*split.labelled, *split.unlabelled]) == list(range(18))
    more = per_class_split(images, candidates, 9, seed=1)
    assert set(split.labelled) < set(more.labelled)
    assert (per_class_split(images, candidates, 6, seed=2).labelled != split.labelled).any()


def test_impossible_splits_are_refused_and_subsets_sorted() -> None:
    images = array_images()
    for labels, message in ((0, "multiple"), (4, "multiple"), (21, "'c0' has 6")):
        with pytest.raises(ValueError, match=message):
            per_class_split(images, np.arange(18), labels, seed=0)
    chosen = seeded_subset(len(images), 7, 3)
    assert len(set(chosen)) == 7
    assert (np.diff(chosen) > 0).all()
    with pytest.raises(ValueError, match="subset=19 but there are 18"):
        seeded_subset(len(images), 19, 0)


# --- ImageNet ----------------------------------------------------------------------------------


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(5):
                pixels = RANDOM.integers(0, 256, (9, 7 + i, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    return tmp_path


def test_image_folder(image_root: Path) -> None:
    images = imagenet(image_root, "train")
    assert images.class_names == ("n01", "n02")
    assert images.labels.tolist() == [0] * 5 + [1] * 5
    pixels, used = images.take(np.array([3, 7]))
    assert [p.shape for p in pixels] == [(9, 10, 3), (9, 9, 3)]
    assert used.tolist() == [3, 7]
    with pytest.raises(DataNotFoundError, match="nowhere/train not found"):
        imagenet(image_root / "nowhere", "train")
    (image_root / "val" / "n03").mkdir()
    with pytest.raises(DataCorruptError, match="no image of class 'n03'"):
        imagenet(image_root, "test")


def test_corrupt_image_is_replaced_counted_and_named(image_root: Path) -> None:
    bad = image_root / "train" / "n01" / "n01_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:100])
    images = imagenet(image_root, "train", max_corrupt=0.1)
    pool = np.array([1, 4, 8])
    with pytest.warns(UserWarning, match=r"n01_1.JPEG: unreadable image skipped .*1 of 10"):
        used = images.take(np.array([1, 8]), pool)[1]
    assert used.tolist() == [4, 8]  # by another of the pool, wherever the batch begins
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        assert images.take(np.array([1]), pool)[1].tolist() == [4]
        assert images.take(np.array([0, 1]))[1].tolist() == [0]  # without a pool left out
        with pytest.raises(DataCorruptError, match="none of 1 images"):
            images.take(np.array([1]), np.array([1]))
    Path(images.path(9)).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="2 of 10"),
        pytest.raises(DataCorruptError, match="2 of 10 images are unreadable, more than"),
    ):
        images.take(np.array([9]), pool)


def test_split_file_is_made_once_and_checked(image_root: Path) -> None:
    images = imagenet(image_root, "train")
    everything, path = np.arange(10), image_root / "split.json"
    made = split_file(images, everything, 4, seed=0, path=path)
    assert np.bincount(images.labels[made.labelled]).tolist() == [2, 2]
    before = path.stat().st_mtime_ns
    again = split_file(images, everything, 4, seed=0, path=path)
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in image_root.glob("split*")] == ["split.json"]
    np.testing.assert_array_equal(made.labelled, again.labelled)
    np.testing.assert_array_equal(made.unlabelled, again.unlabelled)
    with pytest.raises(ValueError, match="labels 2 to 2 images per class, not num_labels=6"):
        split_file(images, everything, 6, seed=0, path=path)
    with pytest.raises(ValueError, match="made with split_seed=0, not 1"):
        split_file(images, everything, 4, seed=1, path=path)
    # A file from another machine: other folders above the class, no seed.
    text = path.read_text().replace(str(image_root), "/elsewhere").replace(', "seed": 0', "")
    path.write_text(text)
    np.testing.assert_array_equal(
        split_file(images, everything, 4, seed=7, path=path).labelled, made.labelled
    )
    path.write_text(text.replace("n01_1.JPEG", "n01_9.JPEG"))
    with pytest.raises(ValueError, match=r"n01_9.JPEG"):
        split_file(images, everything, 4, seed=0, path=path)
    path.write_text(text[:50])
    with pytest.raises(DataCorruptError, match=r"split.json: no JSON"):
        split_file(images, everything, 4, seed=0, path=path)
    with pytest.raises(ValueError, match="subset=null"):
        split_file(images, everything[:5], 4, seed=0, path=path)
