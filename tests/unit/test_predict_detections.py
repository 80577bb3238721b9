"""`tenfold predict` with a detector: what is where, in each picture's own pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import write_portable
from shared.data.detection.framing import framing
from shared.data.readers.outlines import mask_tools
from shared.predict.detections import Objects, draw
from shared.predict.inputs import PredictError
from shared.predict.model import load
from tests.unit import test_predict
from tests.unit.simcal_toy import CLASSES, calibration
from tests.unit.test_predict import refused, run

SIZES = {"a.png": (48, 48), "b.png": (96, 72), "below/c.png": (30, 61)}  # width, height
NAMES = ["red", "a green\nthing", "blue", "yellow"]
DATA: dict[str, Any] = {
    "eval_resizing": {"short": [48], "long": 64},
    "preparation": {"mean": [0.5] * 3, "std": [0.25] * 3, "size_divisor": 8},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A detector whose classes have the ids 10, 20, ..., and pictures of several sizes."""
    save(tmp_path)
    (tmp_path / "images" / "below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


def save(folder: Path, data: dict[str, Any] | None = None, **facts: Any) -> None:
    ids = [10 * label for label in range(1, CLASSES + 1)]
    given = {"class_names": NAMES, "category_ids": ids} | facts
    test_predict.save(calibration().eval(), folder / "last.ckpt", None, **given)
    content = load_checkpoint(folder / "last.ckpt")
    content["datamodule_hyper_parameters"] = DATA if data is None else data
    torch.save(content, folder / "last.ckpt")


def entries(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "detections.json").read_text())


def test_objects_are_in_pixels_of_their_pictures(folder: Path) -> None:
    (folder / "images" / "torn.png").write_bytes(b"no picture")
    found = entries(run(folder, "min_score=0.1", "batch_size=2", "max_detections=5"))
    assert {row["image"] for row in found} == set(SIZES)
    for place, (name, (width, height)) in enumerate(SIZES.items(), 1):
        rows = [row for row in found if row["image"] == name]
        assert 0 < len(rows) <= 5
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) >= 0.1
        for row in rows:
            assert row["image_id"] == place
            x, y, w, h = row["bbox"]
            assert min(x, y) >= 0
            assert x + w <= width + 0.02
            assert y + h <= height + 0.02
            assert min(w, h) > 0
            label = row["category_id"] // 10
            assert row["category"] == " ".join(NAMES[label - 1].split())
            mask = mask_tools().decode(row["segmentation"])
            assert mask.shape == (height, width)
    for number in range(1, 4):
        with Image.open(folder / "out" / f"picture_{number}.png") as drawn:
            width, height = list(SIZES.values())[number - 1]
            times = 384 // max(width, height)  # small ones are enlarged
            assert drawn.size == (times * width, times * height)
    assert (folder / "out" / "contact_sheet.png").is_file()


def test_boxes_are_those_of_the_detector(folder: Path) -> None:
    found = entries(run(folder, "min_score=0.1", "max_detections=8", "batch_size=1"))
    module = calibration().eval()
    pixels = np.asarray(Image.open(folder / "images" / "b.png"))
    batch = framing(DATA).batch([pixels])
    assert batch["sizes"].tolist() == [[48, 64]]
    with torch.no_grad():
        boxes, scores, labels = module.detect(batch)
    kept = scores[0] > 0.1
    rows = [row for row in found if row["image"] == "b.png"]
    # The toy's boxes name their last pixel, those of COCO end behind it.
    expected = torch.cat([boxes[0, kept, :2], boxes[0, kept, 2:] + 1 - boxes[0, kept, :2]], dim=1)
    torch.testing.assert_close(torch.tensor([r["bbox"] for r in rows]), expected, atol=0.01, rtol=0)
    assert [row["score"] for row in rows] == pytest.approx(scores[0, kept].tolist(), abs=1e-5)
    assert [row["category_id"] for row in rows] == (10 * labels[0, kept]).tolist()


def test_pictures_without_objects(folder: Path) -> None:
    output = run(folder, "min_score=1.0")
    assert entries(output) == []
    with Image.open(output / "picture_2.png") as drawn, Image.open(folder / "images/b.png") as own:
        assert np.array_equal(np.asarray(drawn)[::4, ::4], np.asarray(own))


def test_classes_without_names_or_ids_are_numbered(folder: Path) -> None:
    save(folder, class_names=[], category_ids=None)
    found = entries(run(folder, "min_score=0.1", "sheet_images=0"))
    assert all(row["category"] == f"class {row['category_id']}" for row in found)
    assert {row["category_id"] for row in found} <= set(range(1, CLASSES + 1))
    assert not list((folder / "out").glob("picture_*"))


def test_a_portable_checkpoint_detects_the_same(folder: Path) -> None:
    before = entries(run(folder, "min_score=0.15"))
    write_portable(load_checkpoint(folder / "last.ckpt"), folder / "small.safetensors")
    (folder / "last.ckpt").unlink()
    (folder / "small.safetensors").rename(folder / "last.ckpt.safetensors")
    given = [f"checkpoint={folder}/last.ckpt.safetensors", f"images={folder}/images"]
    test_predict.main([*given, f"output={folder}/out", "min_score=0.15"], composed=False)
    after = entries(folder / "out")
    assert len(before) == pytest.approx(len(after), abs=2)
    assert after[0]["category_id"] in {10 * label for label in range(1, CLASSES + 1)}


@pytest.mark.parametrize(
    ("facts", "arguments", "message"),
    [
        ({"class_names": NAMES[:2]}, [], "2 class names for 4 classes"),
        ({"category_ids": [1, 2]}, [], "2 category ids for 4 classes"),
        ({"category_ids": ["a"] * 4}, [], "category_ids are no list of integers"),
        ({"data": {}}, [], "refused: no eval_resizing is recorded"),
        ({}, ["texts=[a dog]"], "does not compare images with texts"),
        ({}, ["min_score=2"], "min_score=2: a number from 0 to 1"),
        ({}, ["max_detections=0"], "max_detections=0: a whole number"),
    ],
)
def test_what_cannot_be_used_is_refused(folder, capsys, facts, arguments, message) -> None:
    save(folder, **facts)
    given = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]
    assert message in refused(capsys, [*given, *arguments])


def test_a_detector_gives_no_probabilities(folder: Path) -> None:
    with pytest.raises(PredictError, match="SimCal detects objects"):
        load(folder / "last.ckpt").probabilities([folder / "images" / "a.png"])


def test_boxes_masks_and_names_are_drawn() -> None:
    picture = np.full((400, 400, 3), 255, np.uint8)
    inside = np.zeros((400, 400), np.uint8, order="F")
    inside[100:300, 100:300] = 1
    boxes, one = torch.tensor([[100.0, 100.0, 300.0, 300.0]]), torch.ones(1)
    found = Objects(boxes, one, one.long(), [mask_tools().encode(inside)])
    drawn = draw(picture, found, ["thing"])
    changed = (drawn != 255).any(axis=2)
    assert changed[100:300, 100:300].all()
    assert not changed[310:].any()
    assert (drawn[200, 100] == [0xD5, 0x5E, 0x00]).all()  # the box
    bare = (draw(picture, found._replace(masks=None), ["thing"]) != 255).any(axis=2)
    assert bare[102:130, 110:150].any()  # what it is
    assert not bare[150:250, 150:250].any()
