"""Scenes for open-vocabulary detection: boxes, captions, and what is kept back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_emoji_scenes import STUDIO

from benchmarks.miniatures.emoji import open_vocabulary as module
from shared.data.errors import DataNotFoundError
from shared.data.readers.instances import read_instances
from tests.unit.demo_toy import write_detector

COUNTS = {"train": 12, "boxed": 10, "val": 4, "test": 5}


@pytest.fixture(scope="module")
def patched():
    """Made-up drawings and vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "studio", lambda: STUDIO)
        patch.setattr(module, "CLASSES", 6)
        patch.setattr(module, "NOVEL", 2)
        patch.setattr(module, "minilm", lambda root: {})
        vectors = lambda texts, folder: torch.tensor([[len(t), 1.0] for t in texts])  # noqa: E731
        patch.setattr(module, "sentence_vectors", vectors)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, patched: None) -> Path:
    root = tmp_path_factory.mktemp("open")
    for _ in range(2):
        made = module.open_vocabulary_scenes(root, root / "minilm", **COUNTS)
    assert "captions_train.json" in made["emoji-open-vocabulary"]["files"]
    return root


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def test_novel_classes_have_no_box_for_training(built: Path) -> None:
    classes = {c["name"]: c for c in content(built / "instances_test.json")["categories"]}
    novel = {name for name, entry in classes.items() if entry["split"] == "unseen"}
    assert (len(classes), len(novel)) == (6, 2)
    boxed = read_instances(built / "instances_boxed.json", built / "scenes" / "boxed")
    assert set(boxed.class_names) == classes.keys() - novel
    assert boxed.usable.all()
    captions = content(built / "captions_train.json")
    assert any(name in one["caption"] for one in captions for name in novel)
    assert content(built / "embeddings.json").keys() == classes.keys()
    assert content(built / "vocabulary.json").keys() == classes.keys()


def test_captions_name_the_objects_that_are_told(built: Path) -> None:
    named = content(built / "secret" / "named_train.json")
    every = content(built / "secret" / "instances_train.json")
    assert 0 < len(named["annotations"]) < len(every["annotations"])
    files = {image["file_name"]: image["id"] for image in named["images"]}
    names = {category["id"]: category["name"] for category in named["categories"]}
    for entry in content(built / "captions_train.json"):
        number = files[entry["image"]]
        told = {names[r["category_id"]] for r in named["annotations"] if r["image_id"] == number}
        said = entry["caption"].replace(",", "").split()
        assert told == {name for name in names.values() if name in said}


def test_before_there_is_a_detector_only_scenes_are_made(built: Path, patched: None) -> None:
    given: dict[str, Any] = {"teacher": "zoo:albef-emoji", "objective": "similarity", **COUNTS}
    place, absent = built / "labels", built / "none.ckpt"
    made = module.pseudo_boxes(place, built, built / "minilm", absent, **given)
    assert "emoji-pseudo-boxes" not in made
    assert not place.exists()
    with pytest.raises(DataNotFoundError, match=r"none\.ckpt not found: first run pb_ovd/mini"):
        module.pseudo_boxes(place, built, built / "minilm", absent, required=True, **given)


def test_pseudo_boxes_and_their_controls_are_made_once(
    built: Path, patched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = write_detector(tmp_path)
    given: dict[str, Any] = {"teacher": "zoo:albef-emoji", "objective": "similarity", **COUNTS}
    places = built, built / "minilm", detector
    made = module.pseudo_boxes(tmp_path / "boxes", *places, **given)["emoji-pseudo-boxes"]
    assert made["licence"].endswith("CC-BY-SA-4.0")
    kinds = {"pseudo_boxes": "labels/labels", "by_lot": "by_lot", "centred": "centred"}
    kinds["misnamed"] = "misnamed"
    assert all(0 <= made[kind]["found"] <= 100 for kind in (*kinds, "proposals"))
    (said,) = made["figures"].values()
    assert Path(made["page"]).is_file()
    assert said["pseudo boxes"] == made["pseudo_boxes"]["found"]
    assert said.keys() == {kind.replace("_", " ") for kind in (*kinds, "proposals")}
    found = {kind: content(tmp_path / "boxes" / f"{path}.json") for kind, path in kinds.items()}
    labels = found["pseudo_boxes"]
    assert labels["annotations"]
    assert {len(of["annotations"]) for of in found.values()} == {len(labels["annotations"])}
    offered = content(tmp_path / "boxes" / "proposals.json")["annotations"]
    boxes = {tuple(np.round(row["bbox"], 3)) for row in offered}
    assert all(tuple(np.round(r["bbox"], 3)) in boxes for r in found["centred"]["annotations"])
    named = content(tmp_path / "boxes" / "named.json")
    assert named == content(built / "secret" / "named_train.json")
    monkeypatch.setattr(module, "proposals", None)  # a second call makes nothing
    again = module.pseudo_boxes(tmp_path / "boxes", *places, **given)["emoji-pseudo-boxes"]
    assert again == made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=12), st.integers(0, 9))
def test_what_is_held_back_is_never_the_last_of_its_group(groups: list[str], seed: int) -> None:
    most = len(groups) - len(set(groups))
    generator = np.random.default_rng(seed)
    chosen = module.held_back(groups, most, generator)
    assert len(chosen) == most
    assert {groups[i] for i in range(len(groups)) if i not in chosen} == set(groups)
    with pytest.raises(ValueError, match="too few"):
        module.held_back(groups, most + 1, generator)


def labelled(boxes: list[tuple[int, str, list[float]]]) -> Any:
    """COCO's form of boxes (image, class, box) on two images."""
    names = sorted({name for _, name, _ in boxes})
    rows = [
        {"id": i, "image_id": image, "category_id": names.index(name), "bbox": box, "area": 1}
        for i, (image, name, box) in enumerate(boxes)
    ]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(2)]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": rows, "categories": categories}


def test_quality_asks_for_the_right_place_and_the_right_name() -> None:
    truth = labelled(
        [(0, "cat", [0, 0, 10, 10]), (0, "dog", [20, 0, 8, 8]), (1, "cat", [5, 5, 4, 4])]
    )
    found = labelled([
        (0, "cat", [1, 0, 10, 10]),  # IoU 0.82
        (0, "dog", [0, 0, 10, 10]),  # where the cat is
        (1, "cat", [5, 5, 4, 1.9]),  # IoU 0.475
    ])  # fmt: skip
    assert module.quality(found, truth) == {"found": pytest.approx(100 / 3), "boxes": 1.0}
    proposals = labelled([(0, "object", box) for box in ([0, 0, 10, 10], [20, 0, 8, 8])])
    assert module.quality(proposals, truth)["found"] == pytest.approx(200 / 3)


def test_boxes_by_lot_are_proposals_of_the_image_under_the_same_names() -> None:
    labels = labelled(
        [(0, "cat", [1, 1, 1, 1]), (1, "dog", [2, 2, 2, 2]), (1, "cat", [3, 3, 3, 3])]
    )
    offered = {0: [[0, 0, 9, 9], [4, 4, 2, 3]], 1: [[7, 7, 1, 5]]}
    proposed = labelled([(image, "object", box) for image, of in offered.items() for box in of])
    dealt = module.dealt_boxes(labels, proposed, np.random.default_rng(0))
    for before, after in zip(labels["annotations"], dealt["annotations"], strict=True):
        assert after["bbox"] in offered[after["image_id"]]
        assert after["area"] == after["bbox"][2] * after["bbox"][3]
        assert after["category_id"] == before["category_id"]
    misnamed = module.dealt_names(labels, np.random.default_rng(3))
    assert [row["bbox"] for row in misnamed["annotations"]] == [
        row["bbox"] for row in labels["annotations"]
    ]
    counts = [sorted(row["category_id"] for row in of["annotations"]) for of in (labels, misnamed)]
    assert counts[0] == counts[1]


def test_central_boxes_are_the_proposals_nearest_to_the_centre() -> None:
    labels = labelled(
        [(0, "cat", [1, 1, 1, 1]), (1, "dog", [2, 2, 2, 2]), (1, "cat", [3, 3, 3, 3])]
    )
    for image, (width, height) in zip(labels["images"], ((100, 60), (40, 40)), strict=True):
        image |= {"width": width, "height": height}
    central = {0: [44, 20, 12, 16], 1: [10, 10, 16, 16]}
    offered = [(0, [0, 0, 100, 40]), (0, central[0]), (1, central[1]), (1, [0, 0, 30, 40])]
    proposed = labelled([(image, "object", box) for image, box in offered])
    found = module.central_boxes(labels, proposed)["annotations"]
    assert [row["bbox"] for row in found] == [central[0], central[1], central[1]]
    assert [row["category_id"] for row in found] == [
        row["category_id"] for row in labels["annotations"]
    ]


def test_a_long_tail_leaves_rare_classes_few_pictures(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RARE", 2)
    monkeypatch.setattr(module, "RARE_IMAGES", 3)
    generator = np.random.default_rng(0)
    rows = [
        (image, name)
        for image in range(400)
        for name in generator.choice(list("abcdx"), generator.integers(1, 4), replace=False)
    ]
    boxes = [
        {"id": i, "image_id": image, "category_id": "abcdx".index(name), "bbox": [0, 0, 9, 9]}
        for i, (image, name) in enumerate(rows)
    ]
    categories = [{"id": i, "split": "unseen" if i == 4 else "seen"} for i in range(5)]
    images = [{"id": image} for image in range(400)]
    coco = {"images": images, "annotations": boxes, "categories": categories}
    tailed = module.long_tailed(coco, np.random.default_rng(1))
    assert tailed["categories"] == categories
    counts = [sum(row["category_id"] == one for row in tailed["annotations"]) for one in range(5)]
    assert sorted(counts)[:3] == [0, 3, 3]
    assert counts[4] == 0
    assert sorted(counts)[3] > 40
    shown = {row["image_id"] for row in tailed["annotations"]}
    # Whatever base class a picture that stays shows still has its box.
    whole = module.seen(coco)["annotations"]
    assert len([row for row in whole if row["image_id"] in shown]) == len(tailed["annotations"])
    tail = content(built / "instances_long_tailed.json")
    few = content(built / "instances_long_tailed_seen.json")
    assert tail["annotations"] == few["annotations"]
    assert (len(tail["categories"]), len(few["categories"])) == (6, 4)
