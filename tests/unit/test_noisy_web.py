"""Noisy web sets: shares, layouts, and that no trace of the truth is outside of secret/."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emoji_toy import made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.miniatures import noisy_web
from benchmarks.miniatures.emoji import subgroup_labels
from benchmarks.miniatures.emoji.render import Renderings
from benchmarks.miniatures.noisy_web import nearest_of_group, noisy_labels
from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from shared.data.errors import DataCorruptError
from shared.data.readers.small_images import fashion_mnist as read_fashion_mnist
from shared.data.readers.webvision import webvision

SYNTHETIC = partial(write_synthetic, train=400, test=100)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web")
    build(root, root / "clean", 0)
    return root / "seed0"


def build(root: Path, fashion_root: Path, seed: int, **changes: Any) -> dict[str, Any]:
    sizes = {"per_class": 30, "tuning_per_class": 10, **changes}
    return noisy_web.fashion_mnist(
        root / f"seed{seed}", fashion_root, seed, clean_source=SYNTHETIC, **sizes
    )


def read_truth(root: Path) -> Any:
    return json.loads((root / "secret" / "web_truth.json").read_text())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 300), st.integers(0, 99))
def test_noisy_labels(classes: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, count)
    look_alike = (np.arange(classes) + 1) % classes
    labels, kinds = noisy_labels(truth, look_alike, generator)
    wrong = labels != truth
    assert wrong.sum() == round(0.3 * count)
    assert [kind != "clean" for kind in kinds] == wrong.tolist()
    confused = np.array([kind == "confused" for kind in kinds], bool)
    assert confused.sum() == round(0.5 * wrong.sum())
    assert (labels[confused] == look_alike[truth[confused]]).all()
    assert ((labels >= 0) & (labels < classes)).all()


def test_uniform_noise_reaches_every_other_class() -> None:
    truth = np.full(4000, 2)
    labels, kinds = noisy_labels(truth, np.array([1, 0, 0, 0]), np.random.default_rng(0))
    uniform = np.bincount(labels[np.array(kinds) == "uniform"])
    assert uniform[2] == 0
    assert uniform[[0, 1, 3]].min() > 150


def test_nearest_of_group() -> None:
    levels = np.array([0, 100, 110, 10, 250], np.uint8)
    images = np.broadcast_to(levels[:, None, None], (5, 2, 2)).copy()
    groups = ["food", "food", "tool", "tool", "sky"]
    # Classes 0 and 3 look nearest of all, but belong to two groups; "sky" has only one class.
    assert nearest_of_group(images, np.arange(5), groups).tolist() == [1, 0, 3, 2, 2]


def test_shares_and_truth(web: Path) -> None:
    truth = read_truth(web)
    content = np.load(web / "web_train.npz")
    kinds = Counter(row["kind"] for row in truth.values())
    assert kinds == {"clean": 168, "uniform": 36, "confused": 36, "ood": 60}
    assert set(truth) == set(content["paths"])
    true = np.array([truth[p]["label"] for p in content["paths"]], object)
    assert Counter(true) == {**dict.fromkeys(range(8), 30), None: 60}
    clean = np.array([truth[p]["kind"] == "clean" for p in content["paths"]])
    assert ((content["labels"] == true) == clean).all()
    assert content["class_names"].tolist() == [
        *("T-shirt/top", "trouser", "pullover", "dress", "coat", "shirt", "sneaker", "ankle boot")
    ]


def test_truth_is_the_sources_label(web: Path) -> None:
    """File names carry the row of the source: its label must be the secret one."""
    source = read_fashion_mnist(web.parent / "clean", "train")
    content, truth = np.load(web / "web_train.npz"), read_truth(web)
    names = content["class_names"].tolist()
    for path, image in zip(content["paths"], content["images"], strict=True):
        row = int(Path(path).stem.removeprefix("train_"))
        np.testing.assert_array_equal(image, source.images[row])
        label = truth[path]["label"]
        name = source.class_names[source.labels[row]]
        assert name in ("sandal", "bag") if label is None else name == names[label]


def test_webvision_layout(web: Path) -> None:
    content = np.load(web / "web_train.npz")
    lines = [
        line
        for engine in ("google", "flickr")
        for line in (web / f"info/train_filelist_{engine}.txt").read_text().splitlines()
    ]
    assert lines == [f"{p} {k}" for p, k in zip(content["paths"], content["labels"], strict=True)]
    assert len({line.split()[0] for line in lines}) == len(lines)
    assert sum(line.startswith("google/") for line in lines) == 200
    for split, below, name in (
        ("test", "val_images_256", "val_filelist"),
        ("val", "tuning_images", "tuning_filelist"),
    ):
        clean = np.load(web / f"web_{split}.npz")
        listed = (web / f"info/{name}.txt").read_text().splitlines()
        assert listed == [
            f"{Path(p).name} {k}" for p, k in zip(clean["paths"], clean["labels"], strict=True)
        ]
        assert np.bincount(clean["labels"]).tolist() == [10] * 8
        with Image.open(web / below / listed[3].split()[0]) as image:
            np.testing.assert_array_equal(np.asarray(image), clean["images"][3])
    with Image.open(web / content["paths"][-1]) as image:
        np.testing.assert_array_equal(np.asarray(image), content["images"][-1])
    paths = [
        p for split in ("train", "val", "test") for p in np.load(web / f"web_{split}.npz")["paths"]
    ]
    assert len({Path(p).name for p in paths}) == len(paths), "no picture is shared"


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_webvision_reader_sees_the_arrays(web: Path, split: str) -> None:
    content = np.load(web / f"web_{split}.npz")
    images = webvision(web, split, num_classes=8, in_memory=True, mode="L")
    np.testing.assert_array_equal(images.labels, content["labels"])
    assert images.class_names == tuple(content["class_names"])
    rows, _ = images.take(np.arange(len(images)))
    np.testing.assert_array_equal(rows, content["images"])


def test_only_the_secret_tells_the_truth(web: Path) -> None:
    """Position, folder and name of a file depend on the web label and chance alone."""
    content, truth = np.load(web / "web_train.npz"), read_truth(web)
    outside = np.array([truth[p]["label"] is None for p in content["paths"]])
    positions = np.flatnonzero(outside) / len(outside)
    assert 0.4 < positions.mean() < 0.6
    for path, label in zip(content["paths"], content["labels"], strict=True):
        name = content["class_names"][label].lower().replace("/", "-").replace(" ", "-")
        assert path.split("/")[1] == name


def test_seeds_differ_and_repeat(web: Path, tmp_path: Path) -> None:
    clean = web.parent / "clean"
    again = build(tmp_path, clean, 0)["fashion-mnist-web"]["files"]
    other = build(tmp_path, clean, 1)["fashion-mnist-web"]["files"]
    assert again == build(web.parent, clean, 0)["fashion-mnist-web"]["files"]
    assert again["secret/web_truth.json"] != other["secret/web_truth.json"]
    with pytest.raises(DataCorruptError, match="web built with seed=0 instead of 1"):
        noisy_web.fashion_mnist(
            web, web.parent / "clean", 1, per_class=30, tuning_per_class=10, clean_source=SYNTHETIC
        )


def test_too_few_pictures(web: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="per_class=35 and tuning_per_class=10 ask for more"):
        build(tmp_path, web.parent / "clean", 0, per_class=35)


def test_emoji_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Renderings = made_up()
    for module in (noisy_web, subgroup_labels):
        monkeypatch.setattr(module, "renderings", lambda: made)
    root = tmp_path / "web"
    record = noisy_web.emoji(root, tmp_path / "emoji", 0)
    assert {"emoji-subgroups", "emoji-web", "noto"} <= set(record)
    truth = read_truth(root)
    natural = np.load(tmp_path / "emoji/emoji_train.npz")
    inside = {p: row for p, row in truth.items() if row["label"] is not None}
    assert len(inside) == len(natural["labels"]) == 99
    assert len(truth) - len(inside) == round(99 / 4)
    label_of = {
        Path(p).stem: int(k) for p, k in zip(natural["paths"], natural["labels"], strict=True)
    }
    assert all(label_of[Path(p).stem] == row["label"] for p, row in inside.items())
    content = np.load(root / "web_train.npz")
    wrong = [truth[p]["kind"] in ("uniform", "confused") for p in content["paths"]]
    assert sum(wrong) == round(0.3 * 99)
    google = {p for p in content["paths"] if p.startswith("google/")}
    for path in content["paths"]:
        artist = Path(path).stem.split("_")[0]
        assert (path in google) == (artist in ("noto", "noto1", "twemoji", "openmoji"))
    for split in ("val", "test"):
        clean = np.load(tmp_path / f"emoji/emoji_{split}.npz")
        np.testing.assert_array_equal(np.load(root / f"web_{split}.npz")["images"], clean["images"])
    assert json.loads((root / "manifests/web.json").read_text())["recipe"]["seed"] == 0
    assert (root / "ATTRIBUTION.md").is_file()
