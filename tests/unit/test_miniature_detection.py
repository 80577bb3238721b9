"""Builders of long-tailed detection sets: what they promise is what the reader finds."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detection_toy import content
from hypothesis import given, settings
from hypothesis import strategies as st
from test_emoji_scenes import STUDIO

from benchmarks import coco_lt
from benchmarks.miniatures.detection import dealt, long_tail_counts, lvis_of
from benchmarks.miniatures.emoji import long_tailed_scenes as module
from benchmarks.miniatures.emoji.packages import of_split
from benchmarks.miniatures.emoji.scenes import make_scenes
from benchmarks.miniatures.synthetic_detection import shapes
from shared.data.readers.instances import Instances, read_instances
from shared.data.readers.outlines import mask_tools


def test_long_tail_counts() -> None:
    counts = long_tail_counts(40, 600, 2)
    assert (counts[0], counts[-1], sum(counts)) == (600, 2, 4397)
    assert [sum(n < 10 for n in counts), sum(10 <= n < 100 for n in counts)] == [11, 16]
    assert long_tail_counts(3, 8, 3) == [8, 5, 3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(6, 12), min_size=5, max_size=9), st.integers(0, 9))
def test_dealt_scenes_have_the_counts_and_no_class_twice(counts: list[int], seed: int) -> None:
    scenes = dealt(counts, np.random.default_rng(seed), fewest=1, most=4)
    assert Counter(label for scene in scenes for label in scene) == Counter(dict(enumerate(counts)))
    assert all(1 <= len(scene) == len(set(scene)) <= 4 for scene in scenes)


def test_scenes_that_lots_hardly_fill_are_dealt_evenly() -> None:
    scenes = dealt([240] * 12, np.random.default_rng(0), fewest=2, most=2)
    assert Counter(label for scene in scenes for label in scene) == dict.fromkeys(range(12), 240)
    assert all(len(set(scene)) == 2 for scene in scenes)


@pytest.mark.parametrize(("counts", "message"), [([9, 1], "no scenes of 2"), ([1], "too few")])
def test_impossible_scenes(counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dealt(counts, np.random.default_rng(0))


def test_lvis_says_what_each_image_lacks() -> None:
    coco = content()
    other = content() | {"annotations": content()["annotations"][:2]}
    made = lvis_of(coco, other)
    assert [image["neg_category_ids"] for image in made["images"]] == [[], []]
    seven, three = made["categories"]
    assert (seven["image_count"], seven["instance_count"], seven["frequency"]) == (2, 2, "r")
    assert (three["image_count"], three["instance_count"]) == (0, 0)
    assert all("iscrowd" not in row for row in made["annotations"])
    assert [image["neg_category_ids"] for image in lvis_of(other, coco)["images"]] == [[3], [3]]


def both(root: Path, split: str, pictures: str) -> list[Instances]:
    folder = root / pictures / split
    return [
        read_instances(root / f"{kind}_{split}.json", folder, masks=True)
        for kind in ("instances", "lvis_v0.5")
    ]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "studio", lambda: STUDIO)
        for _ in range(2):
            record = module.long_tailed_scenes(root, classes=6, most=18, fewest=2, val=2, test=3)
    assert "lvis_v0.5_train.json" in record["emoji-long-tailed-scenes"]["files"]
    return root


@pytest.mark.parametrize("split", ["train", "val", "test", "test_seen"])
def test_long_tailed_scenes(emoji: Path, split: str) -> None:
    coco, lvis = both(emoji, split, "scenes")
    assert np.array_equal(coco.boxes, lvis.boxes)
    assert coco.usable.all()
    expected = {"train": long_tail_counts(6, 18, 2), "val": [2] * 6}.get(split, [3] * 6)
    assert sorted(coco.instance_counts, reverse=True) == expected
    assert (coco.image_counts == coco.instance_counts).all()
    assert (np.diff(coco.starts) <= 4).all()
    assert lvis.frequencies.count("c") == sum(n > 10 for n in long_tail_counts(6, 18, 2))
    assert lvis.negative is not None
    shown = [set(lvis.labels[lvis.of_image(image)]) for image in range(len(lvis))]
    assert all(set(lvis.negative[image]) == set(range(1, 7)) - s for image, s in enumerate(shown))
    for number, box in enumerate(coco.boxes.astype(int)):
        assert coco.masks is not None
        area = mask_tools().area(coco.masks.compressed(number, (96, 96)))
        assert area == coco.areas[number] <= box[2] * box[3]


def test_which_class_is_rare_is_drawn() -> None:
    ranks = [module.generator_of(seed, f"{module.NAME} ranks").permutation(9) for seed in (0, 1)]
    assert ranks[0].tolist() != ranks[1].tolist()


def test_drawings_of_training_are_tested_on_other_photographs() -> None:
    (scene,) = make_scenes(STUDIO, "test_seen", [[9, 13]], 0, "any")
    assert scene.id == 4_000_000
    assert scene.ground in {"coffee", "gravel", "rocket", "flower"}
    assert all(thing.rendering in of_split("train") for thing in scene.objects)


def test_shapes(tmp_path: Path) -> None:
    record = shapes(tmp_path)
    assert shapes(tmp_path) == record
    coco, lvis = both(tmp_path, "train", "images")
    assert coco.instance_counts.tolist() == [24, 15, 9, 5, 3, 2]
    assert lvis.frequencies == "ccrrrr"
    assert coco.class_names[0] == "red circle"
    assert coco.masks is not None
    squares = [name.endswith("square") for name in coco.class_names]
    full = coco.areas == coco.boxes[:, 2:].prod(axis=1)
    assert (full == np.array(squares)[coco.labels - 1]).all()
    assert read_instances(tmp_path / "instances_val.json").instance_counts.tolist() == [4] * 6


def test_coco_lt_keeps_the_listed_images_and_counts(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    value = content()
    value["images"] = [{"id": n, "file_name": "a", "height": 9, "width": 9} for n in range(6)]
    row = value["annotations"][0] | {"segmentation": []}
    rows = generator.permutation([(image, label) for image in range(6) for label in (3, 3, 3, 7)])
    value["annotations"] = [
        row | {"id": n, "image_id": int(image), "category_id": int(label)}
        for n, (image, label) in enumerate(rows)
    ]
    source = tmp_path / "all.json"
    source.write_text(json.dumps(value))
    members = [np.array([1, 2, 5]), np.array([2])]
    kept = coco_lt.kept_annotations(source, members, [5, 1], seed=0)
    reduced = coco_lt.reduced(value, kept)
    assert [image["id"] for image in reduced["images"]] == [1, 2, 5]
    (tmp_path / "some.json").write_text(json.dumps(reduced))
    found = read_instances(tmp_path / "some.json")
    assert found.instance_counts.tolist() == [5, 1]
    assert found.image_counts.tolist() == [3, 1]  # the surplus never takes an image's last
    assert coco_lt.kept_annotations(source, members, [5, 1], seed=1).tolist() != kept.tolist()


def test_coco_lt_refuses_other_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "all.json"
    source.write_text(json.dumps(content()))
    assert coco_lt.main([str(source), str(tmp_path / "out.json")]) == 1
    assert "2 categories, but COCO has 80" in capsys.readouterr().err
    assert coco_lt.main([str(tmp_path / "no.json"), str(tmp_path / "out.json")]) == 1
    assert not (tmp_path / "out.json").exists()


def test_recorded_counts() -> None:
    """Figures of docs/papers/simcal.md, section 6."""
    bins = {"coco_lt": [20, 400, 8000], "lvis_train": [10, 100, 1000]}
    of_bins = {
        name: np.bincount(np.searchsorted(edges, coco_lt.COUNTS[name]["instances"], "right"))
        for name, edges in bins.items()
    }
    assert of_bins["coco_lt"].tolist() == [4, 24, 32, 20]
    assert of_bins["lvis_train"].tolist() == [294, 453, 302, 181]
    sums = {name: sum(counts["instances"]) for name, counts in coco_lt.COUNTS.items()}
    assert sums == {"coco_lt": 666_493, "lvis_train": 693_958, "lvis_val": 50_763}
    assert np.count_nonzero(coco_lt.COUNTS["lvis_val"]["images"]) == 830
