"""Long-tailed counts, subsets and lists; VOC2007, Places205 and fractions of ImageNet."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import FolderImages
from shared.data.readers.imagenet import imagenet_fraction
from shared.data.readers.long_tail import (
    cifar_lt,
    class_aware_weights,
    fashion_mnist_lt,
    inaturalist2018,
    long_tail_counts,
)
from shared.data.readers.small_images import cifar10
from shared.data.readers.voc_places import PLACES_IMAGES, VOC_CLASSES, places205, voc2007


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


# --- counts and weights ------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(50, 5000), st.floats(1, 50), st.integers(1, 30))
def test_counts_fall_from_n_max_by_the_ratio(n_max: int, ratio: float, classes: int) -> None:
    counts = long_tail_counts(n_max, ratio, classes)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert (np.diff(counts) <= 0).all()
    if classes > 1:
        assert n_max / ratio - 2 < counts[-1] <= n_max / ratio + 1e-6


def test_step_profile_and_bad_values() -> None:
    assert long_tail_counts(100, 10, 5, "step").tolist() == [100, 100, 10, 10, 10]
    for bad in ((100, 0.5, 3), (0, 2, 3), (5, 2, 0)):
        with pytest.raises(ValueError, match="at least"):
            long_tail_counts(*bad)
    with pytest.raises(ValueError, match="leaves a class without images"):
        long_tail_counts(5, 10, 3)
    with pytest.raises(ValueError, match="exponential or step"):
        long_tail_counts(5, 1, 3, "linear")
    with pytest.raises(ValueError, match="no class has any image"):
        class_aware_weights(np.zeros(3), 1)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(any), st.floats(0, 2, width=32))
def test_class_aware_weights(counts: list[int], gamma: float) -> None:
    image, of_class = class_aware_weights(np.array(counts), gamma)
    assert of_class.sum() == pytest.approx(1)
    np.testing.assert_allclose(image * counts, of_class)
    assert (of_class[np.array(counts) == 0] == 0).all()
    if gamma == 1:
        present = of_class[np.array(counts) > 0]
        np.testing.assert_allclose(present, 1 / len(present))


# --- CIFAR and Fashion-MNIST -------------------------------------------------------------------


def write_cifar10(root: Path, per_class: int) -> Path:
    """The public files, image i filled with the byte i."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)]
    labels = np.tile(np.arange(10), per_class)
    data = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None], 3072, axis=1)
    parts = dict(zip(names, np.array_split(np.arange(len(labels)), 5), strict=True))
    for name, part in (parts | {"test_batch": np.arange(20)}).items():
        content = {b"data": data[part], b"labels": labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {b"label_names": [f"c{i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return root


def test_cifar_lt_is_the_public_subset(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path, per_class=20)
    whole = cifar10(root, "train")
    state = np.random.get_state()  # noqa: NPY002
    images = cifar_lt(root, "train", ratio=10)
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    # The public construction, with numpy's global generator.
    np.random.seed(0)  # noqa: NPY002
    expected = []
    for label, count in enumerate(long_tail_counts(20, 10, 10)):
        members = np.where(whole.labels == label)[0]
        np.random.shuffle(members)  # noqa: NPY002
        expected += members[:count].tolist()
    np.random.set_state(state)  # noqa: NPY002
    assert images.images[:, 0, 0, 0].tolist() == expected
    assert images.labels.tolist() == whole.labels[expected].tolist()
    assert np.bincount(images.labels).tolist() == long_tail_counts(20, 10, 10).tolist()
    assert len(cifar_lt(root, "test")) == 20
    with pytest.raises(ValueError, match="10 or 100"):
        cifar_lt(root, "train", classes=20)


def fashion(root: Path, split: str, **changes: int) -> dict:
    sizes = {"n_max": 10, "ratio": 10, "val_per_class": 3, "balanced_per_class": 5}
    images = fashion_mnist_lt(root, split, **sizes | changes)  # type: ignore[arg-type]
    keys = [hash(i.tobytes()) for i in images.images]
    return {"counts": np.bincount(images.labels, minlength=10).tolist(), "images": set(keys)}


def test_fashion_mnist_lt(tmp_path: Path) -> None:
    write_synthetic(tmp_path, train=200, test=20)
    train, val, balanced = (fashion(tmp_path, s) for s in ("train", "val", "balanced"))
    assert sorted(train["counts"], reverse=True) == long_tail_counts(10, 10, 10).tolist()
    assert val["counts"] == [3] * 10
    assert balanced["counts"] == [5] * 10
    parts = [train["images"], val["images"], balanced["images"]]
    assert sum(map(len, parts)) == len(set().union(*parts)) == sum(train["counts"]) + 80
    # Another seed: other ranks, other images; the counts themselves stay.
    other = fashion(tmp_path, "train", seed=1)
    assert other["counts"] != train["counts"]
    assert sorted(other["counts"]) == sorted(train["counts"])
    assert train == fashion(tmp_path, "train")
    # A longer tail is nested in the shorter one and moves no other part.
    assert fashion(tmp_path, "train", ratio=1)["images"] > train["images"]
    assert fashion(tmp_path, "val", ratio=1) == val
    assert len(fashion_mnist_lt(tmp_path, "test")) == 20
    with pytest.raises(ValueError, match="= 21, but a class has 20 images"):
        fashion(tmp_path, "train", n_max=13)
    with pytest.raises(ValueError, match="expected one of train, val, balanced, test"):
        fashion(tmp_path, "extra")


# --- lists -------------------------------------------------------------------------------------


def test_inaturalist(tmp_path: Path) -> None:
    names = {7: "train_val2018/a/7.jpg", 3: "3.jpg"}
    for name in names.values():
        picture(tmp_path / name)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 3, "category_id": 0}],
        "categories": [{"id": 1, "name": "moth"}, {"id": 0, "name": "moss"}],
    }
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    images = inaturalist2018(tmp_path, "train")
    assert images.labels.tolist() == [1, 0]
    assert images.class_names == ("moss", "moth")
    assert images.path(1) == str(tmp_path / "3.jpg")
    with pytest.raises(DataNotFoundError, match=r"val2018\.json"):
        inaturalist2018(tmp_path, "test")


# --- transfer ----------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for column, name in enumerate(VOC_CLASSES):
        rows = [f"{i:06d} {'-1' if (i + column) % 3 else ' 1'}" for i in range(1, 5)]
        if name == "bird":
            rows[0] = "000001  0"
        for part in ("trainval", "test"):
            text = "\n".join(rows) + "\n"
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(text)
    for i in range(1, 5):
        picture(folder / "JPEGImages" / f"{i:06d}.jpg")
    return tmp_path


def test_voc2007(voc: Path) -> None:
    images = voc2007(voc, "train")
    assert images.labels.shape == (4, 20)
    assert images.labels[:, 0].tolist() == [-1, -1, 1, -1]
    assert images.labels[0, VOC_CLASSES.index("bird")] == 0
    assert images.class_names == tuple(sorted(VOC_CLASSES)) == VOC_CLASSES
    pixels, used = images.take(np.array([2]))
    assert (len(pixels), used.tolist()) == (1, [2])
    assert len(voc2007(voc, "test")) == 4


def test_voc2007_damage(voc: Path) -> None:
    lists = voc / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    good = (lists / "cat_test.txt").read_text()
    for text, message in (
        (good.replace("000002", "000009"), "other images"),
        (good + "000007\n", "is not 'id label'"),
        (good.replace("-1", "2"), "is not 'id label'"),
    ):
        (lists / "cat_test.txt").write_text(text)
        with pytest.raises(DataCorruptError, match=rf"cat_test\.txt.*{message}"):
            voc2007(voc, "test")
    with pytest.raises(DataCorruptError, match="no image of class 'a'"):
        FolderImages(["x"], np.array([[-1, 1]]), ["a", "b"], "o")
    with pytest.raises(DataCorruptError, match="expected labels -1, 0 or 1 of 2 classes"):
        FolderImages(["x"], np.array([[1]]), ["a", "b"], "o")


def test_places205(tmp_path: Path) -> None:
    lists = tmp_path / "trainvalsplit_places205"
    lists.mkdir()
    names = [f"{'abc'[i % 3]}/p{i}.jpg" for i in range(12)]
    lines = "".join(f"{name} {i % 3}\n" for i, name in enumerate(names))
    for part in ("train", "val"):
        (lists / f"{part}_places205.csv").write_text(lines)
    for name in names:
        picture(tmp_path / PLACES_IMAGES / name)
    whole = places205(tmp_path, "train")
    assert len(whole) == len(places205(tmp_path, "test", shots=2)) == 12
    assert whole.path(1) == str(tmp_path / PLACES_IMAGES / "b" / "p1.jpg")

    def drawn(shots: int, seed: int = 0) -> list[set[str]]:
        images = places205(tmp_path, "train", shots, seed)
        assert images.labels.tolist() == sorted([0, 1, 2] * shots)
        return [{images.path(i) for i in np.flatnonzero(images.labels == k)} for k in range(3)]

    assert all(few < more for few, more in zip(drawn(1), drawn(3), strict=True))
    assert drawn(2) == drawn(2)
    assert drawn(2) != drawn(2, seed=1)
    for shots in (0, 5):
        with pytest.raises(ValueError, match=f"shots={shots}, but class 0 has 4"):
            places205(tmp_path, "train", shots)


def test_imagenet_fraction(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 2)):
        for number in range(count):
            for name in ("n1", "n2"):
                picture(tmp_path / part / name / f"{name}_{number}.png")
    path = tmp_path / "lists" / "half.txt"
    images = imagenet_fraction(tmp_path, "train", 0.5, path)
    found = [images.path(i) for i in range(len(images))]
    assert len(found) == 10
    assert found == sorted(found)
    listed = path.read_text()
    assert [f"{Path(p).parent.name}/{Path(p).name}" for p in found] == listed.split()
    # What has been written once is what all others read, whatever their seed.
    again = imagenet_fraction(tmp_path, "train", 0.5, path, seed=1)
    assert [again.path(i) for i in range(len(again))] == found
    assert path.read_text() == listed
    other = imagenet_fraction(tmp_path, "train", 0.5, tmp_path / "other.txt", seed=1)
    assert [other.path(i) for i in range(len(other))] != found
    assert len(imagenet_fraction(tmp_path, "test", 0.5, path)) == 4
    # A tenth may leave out a class.
    assert len(imagenet_fraction(tmp_path, "train", 0.05, tmp_path / "one.txt")) == 1
    with pytest.raises(ValueError, match=r"half\.txt lists 10 images, fraction=0\.2 are 4"):
        imagenet_fraction(tmp_path, "train", 0.2, path)
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        imagenet_fraction(tmp_path, "train", 0.01, tmp_path / "none.txt")
    path.write_text(listed.replace("n1_", "n9_"))
    with pytest.raises(DataCorruptError, match="not among the training images"):
        imagenet_fraction(tmp_path, "train", 0.5, path)
