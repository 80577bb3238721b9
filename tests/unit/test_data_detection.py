"""Instances files of COCO and LVIS: what is read, and what is refused in one line."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_toy import content, federated, read
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as tools

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.instances import read_instances
from shared.data.readers.outlines import OutlineError, decompressed, outlines


def test_columns(tmp_path: Path) -> None:
    found = read(tmp_path, content())
    assert found.image_ids.tolist() == [5, 2]
    assert found.sizes.tolist() == [[20, 30], [24, 16]]
    assert found.class_names == ("dog", "cup")  # by rising id
    assert found.category_ids.tolist() == [3, 7]
    assert found.ids.tolist() == [1, 3, 2, 4, 5]  # image by image, in the file's order
    assert found.labels.tolist() == [2, 1, 2, 2, 1]
    assert found.of_image(1) == slice(2, 5)
    assert found.usable.tolist() == [True, True, True, True, False]  # the last is a crowd
    assert found.instance_counts.tolist() == [2, 3]
    assert found.image_counts.tolist() == [2, 2]
    assert os.fsdecode(found.paths[1]) == str(tmp_path / "2.png")
    assert not found.federated


def test_lvis(tmp_path: Path) -> None:
    value = federated()
    value["images"][0]["file_name"] = "COCO_val2014_000000000005.jpg"
    value["images"][1] |= {"file_name": None, "coco_url": "http://host/train2017/2.jpg"}
    found = read(tmp_path, value)
    assert found.federated
    assert found.frequencies == "cfr"
    assert [found.negative[i].tolist() for i in (0, 1)] == [[], [3]]
    assert [found.not_exhaustive[i].tolist() for i in (0, 1)] == [[2], []]
    names = [os.fsdecode(path) for path in found.paths]
    assert names == [str(tmp_path / name) for name in ("000000000005.jpg", "train2017/2.jpg")]


def test_what_is_amiss_is_counted_and_not_learnt_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = federated()
    value["annotations"][0]["bbox"] = [25, 3, 10, 5]  # five pixels leave the picture
    value["annotations"][2]["bbox"] = [40, 3, 10, 5]  # all do
    value["annotations"][1]["area"] = value["annotations"][3]["bbox"][2] = 0
    value["annotations"][4]["ignore"] = 1
    with caplog.at_level(logging.INFO):
        found = read(tmp_path, value)
    assert found.corners[0].tolist() == [25, 3, 30, 8]
    assert found.boxes[0].tolist() == [25, 3, 10, 5]  # as the file has it, for evaluation
    assert found.usable.tolist() == [True, False, False, False, False]
    told = "2 boxes clipped to their image, 3 boxes of no area left out of training"
    assert f"{told}, 1 images without an object, 1 classes without an image" in caplog.text


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


WRONG = {
    "annotations, entry 1: id 1 is there before": change("annotations", 1, "id", to=1),
    "images, entry 1: id 5 is there before": change("images", 1, "id", to=5),
    "categories, entry 1: id 7 is there before": change("categories", 1, "id", to=7),
    "annotations, entry 3: category_id 8 is the id of no category": change(
        "annotations", 3, "category_id", to=8
    ),
    "annotations, entry 3: image_id 8 is the id of no image": change(
        "annotations", 3, "image_id", to=8
    ),
    "categories, entry 1: name is ' ', expected a text": change("categories", 1, "name", to=" "),
    "images, entry 0: height is 0, expected a number of pixels": change(
        "images", 0, "height", to=0
    ),
    "images, entry 0: width is 10000000000": change("images", 0, "width", to=10**10),
    "images, entry 0: no file_name, nor a coco_url": change("images", 0, "file_name", to=3),
    "is outside of the image root": change("images", 0, "file_name", to="../5.png"),
    "annotations, entry 4: iscrowd is 2": change("annotations", 4, "iscrowd", to=2),
    "annotations, entry 0: bbox is [1, 2, -3, 4], expected": change(
        "annotations", 0, "bbox", to=[1, 2, -3, 4]
    ),
    "annotations, entry 0: bbox is [1, 2, nan, 4]": change(
        "annotations", 0, "bbox", to=[1, 2, float("nan"), 4]
    ),
    "annotations, entry 0: area is '9'": change("annotations", 0, "area", to="9"),
    "annotations, entry 1: segmentation: its size is [16, 24], but the image has height": change(
        "annotations", 1, "segmentation", "size", to=[16, 24]
    ),
    "its runs cover 385 of 384 pixels": change(
        "annotations", 1, "segmentation", "counts", to=[1, 12, 372]
    ),
    "its counts have a run below 0": change(
        "annotations", 1, "segmentation", "counts", to=b"3`h9".decode()
    ),
    "is no list [x, y, x, y": change("annotations", 0, "segmentation", to=[[1, 2, 3, 4, 5]]),
    "its polygon lies more than": change(
        "annotations", 0, "segmentation", to=[[0, 0, 1e8, 0, 5, 5]]
    ),
    "expected run lengths or a list of polygons": change("annotations", 0, "segmentation", to="x"),
    "annotations, entry 2: 7 is no object": change("annotations", 2, to=7),
    "images: expected a list, got NoneType": change("images", to=None),
    "no images, or no categories": change("categories", to=[]),
}


@pytest.mark.parametrize(("message", "wrong"), WRONG.items(), ids=WRONG)
def test_refused(tmp_path: Path, message: str, wrong: Callable[[dict[str, Any]], None]) -> None:
    value = content()
    wrong(value)
    with pytest.raises(DataCorruptError) as refusal:
        read(tmp_path, value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("neg_category_ids 8 is the id of no", change("images", 1, "neg_category_ids", to=[8])),
        ("neg_category_ids is 9, expected", change("images", 1, "neg_category_ids", to=9)),
        ("frequency is 'x', expected r, c or f", change("categories", 0, "frequency", to="x")),
    ],
)
def test_refused_of_lvis(
    tmp_path: Path, message: str, wrong: Callable[[dict[str, Any]], None]
) -> None:
    value = federated()
    wrong(value)
    with pytest.raises(DataCorruptError, match=message):
        read(tmp_path, value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="make data"):
        read_instances(tmp_path / "none.json", tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(*2 * [st.integers(1, 40)]), elements=st.integers(0, 1)),
)
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray) -> None:
    encoded = tools.encode(np.asfortranarray(mask))
    size = (mask.shape[0], mask.shape[1])
    assert decompressed(encoded["counts"]).sum() == mask.size
    assert outlines([encoded], [size]).compressed(0, size) == encoded


def test_long_runs() -> None:
    size = [30_000, 30_000]
    encoded = tools.frPyObjects({"size": size, "counts": [5, 10**8, 9 * 10**8 - 5 - 10**8]}, *size)
    assert decompressed(encoded["counts"]).tolist() == [5, 10**8, 9 * 10**8 - 5 - 10**8]


@pytest.mark.parametrize("text", ["", "o", "ooooooooo0", "\x00", "~"])
def test_no_run_lengths(text: str) -> None:
    with pytest.raises(ValueError, match="no run lengths"):
        decompressed(text)


def test_several_polygons_are_one_mask() -> None:
    parts = [[0, 0, 4, 0, 4, 4, 0, 4], [6, 6, 9, 6, 9, 9, 6, 9]]
    found = outlines([None, parts, parts[:1]], [(10, 10)] * 3)
    assert found.compressed(0, (10, 10)) is None
    masks = [tools.decode(found.compressed(number, (10, 10))) for number in (1, 2)]
    assert [int(mask.sum()) for mask in masks] == [25, 16]


def test_an_error_names_the_object() -> None:
    with pytest.raises(OutlineError) as refusal:
        outlines([None, {"size": [2, 2], "counts": [5]}], [(2, 2)] * 2)
    assert refusal.value.number == 1
