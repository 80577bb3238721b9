"""The artificial pairs: what the texts say is true of the pixels, and every reader reads them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from views_toy import plain_views

from benchmarks.miniatures.synthetic_pairs import COLOURS, SHAPES, pairs
from shared.data.errors import DataCorruptError
from shared.data.image_text.labelled_sentences import EntailmentData, NLVRData
from shared.data.image_text.pairs import ImageTextData, PairData, image_id
from shared.data.image_text.referring import ReferringData
from shared.data.image_text.shards import ShardPairData, ShardSamples
from shared.data.image_text.vqa import VQAData
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.data.text.wordpiece import WordPiece

TRAIN, TEST = 24, 12
SPLITS = {"train": "train", "val": "dev", "test": "test"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    pairs(folder, TRAIN, TEST)
    return folder


def read(root: Path, name: str) -> Any:
    return json.loads((root / name).read_text())


def seen(root: Path, file: str) -> list[tuple[str, str]]:
    """Colour and shape of the upper and the lower object, from the pixels alone."""
    pixels = np.asarray(Image.open(root / file)).astype(int)
    found = []
    for half in (pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]):
        distance = {
            name: np.abs(half - np.array(colour)).sum(axis=2) for name, colour in COLOURS.items()
        }
        name = min(distance, key=lambda key: int(distance[key].min()))
        mask = distance[name] == 0
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        filled = float(box.mean())
        shape = "square" if filled > 0.95 else "circle" if filled > 0.68 else "triangle"
        found.append((name, shape))
    return found


def named(text: str) -> list[tuple[str, str]]:
    return re.findall(f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)


def test_captions_are_true_and_scenes_differ(root: Path) -> None:
    upper_lower = {}
    for entry in read(root, "pairs_train.json"):
        upper, lower = seen(root, entry["image"])
        first, second = named(entry["caption"])
        above = " above " in entry["caption"]
        assert (first, second) == ((upper, lower) if above else (lower, upper))
        assert entry["image"] == f"images/{entry['image_id']:012}.png"
        upper_lower[entry["image"]] = (upper, lower)
    assert len(read(root, "pairs_train.json")) == 2 * TRAIN == 2 * len(upper_lower)
    for split in ("val", "test"):
        entries = read(root, f"pairs_{split}.json")
        assert len(entries) == TEST
        for entry in entries:
            assert [named(c) for c in entry["caption"]] == [
                seen(root, entry["image"]),
                seen(root, entry["image"])[::-1],
            ]
            upper_lower[entry["image"]] = tuple(seen(root, entry["image"]))
    assert len(set(upper_lower.values())) == TRAIN + 2 * TEST


def test_answers_are_true(root: Path) -> None:
    identities = []
    for split in SPLITS:
        for entry in read(root, f"vqa_{split}.json"):
            (colour, shape), lower = seen(root, entry["image"])
            text, answers = entry["question"], entry["answer"]
            if named(text):
                truth = "yes" if named(text)[0] in ((colour, shape), lower) else "no"
            else:
                truth = colour if "colour" in text else shape
            assert answers.count(truth) >= 8, entry
            assert len(answers) == 10
            identities.append(entry["question_id"])
    for entry in read(root, "vg_qa.json"):
        assert entry["answer"] == seen(root, entry["image"])[1][1]
        identities.append(entry["question_id"])
    assert len(set(identities)) == len(identities)
    answers = [a for e in read(root, "vqa_train.json") for a in e["answer"]]
    assert set(answers) == set(read(root, "answer_list.json"))
    assert {len(set(entry["answer"])) for entry in read(root, "vqa_train.json")} == {1, 2}


def test_statements_are_as_labelled(root: Path) -> None:
    for split in SPLITS.values():
        labels = []
        for entry in read(root, f"nlvr_{split}.json"):
            side = "right" in entry["sentence"]
            there = named(entry["sentence"])[0] in seen(root, entry["images"][side])
            assert entry["label"] == str(there)
            labels.append((there, side))
        assert set(labels) == {(True, False), (True, True), (False, False), (False, True)}
        kinds = []
        for entry in read(root, f"ve_{split}.json"):
            objects = seen(root, f"images/{entry['image']}.png")
            assert (root / f"images/{entry['image']}.jpg").is_file()
            if entry["label"] != "neutral":
                there = named(entry["sentence"])[0] in objects
                assert there == (entry["label"] == "entailment")
            kinds.append(entry["label"])
        assert set(kinds) == {"entailment", "neutral", "contradiction"}


def test_expressions_name_what_their_boxes_hold(root: Path) -> None:
    instances = read(root, "refcoco+/instances.json")
    boxes = {annotation["id"]: annotation for annotation in instances["annotations"]}
    refs = {ref["ref_id"]: ref for ref in read_plain_pickle(root / "refcoco+" / "refs(unc).p")}
    proposals = read(root, "dets.json")
    parts: dict[str, int] = {}
    for split in SPLITS:
        for entry in read(root, f"refcoco+_{split}.json"):
            ref = refs[entry["ref_id"]]
            annotation = boxes[ref["ann_id"]]
            ((colour, shape),) = named(entry["text"])
            x, y, width, height = annotation["bbox"]
            part = np.asarray(Image.open(root / entry["image"]))[y : y + height, x : x + width]
            assert part.shape == (height, width, 3)
            inside = (part == np.array(COLOURS[colour])).all(axis=2)
            assert inside.any(axis=0).all()
            assert inside.any(axis=1).all()
            category = next(
                c for c in instances["categories"] if c["id"] == annotation["category_id"]
            )
            assert category["name"] == shape
            assert ref["sentences"][0]["sent"] == entry["text"]
            assert entry["image"] == ref["file_name"]
            assert ref["image_id"] == annotation["image_id"]
            assert len(proposals[str(ref["image_id"])]) == 4
            parts[ref["split"]] = parts.get(ref["split"], 0) + 1
    assert parts == {"train": 2 * TRAIN, "val": 2 * TEST, "testA": TEST, "testB": TEST}


TASKS: dict[str, tuple[type[ImageTextData], str, dict[str, str]]] = {
    "pairs": (PairData, "pairs_{val}", {}),
    "shards": (ShardPairData, "pairs_{val}", {"shards": "shards/*.tar"}),
    "vqa": (VQAData, "vqa_{val}", {"answer_list": "answer_list.json"}),
    "nlvr": (NLVRData, "nlvr_{dev}", {}),
    "ve": (EntailmentData, "ve_{dev}", {"image_root": "images"}),
    "refcoco+": (
        ReferringData,
        "refcoco+_{val}",
        {"refs": "refcoco+/refs(unc).p", "instances": "refcoco+/instances.json"}
        | {"proposals": "dets.json"},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_reads_its_files_without_unknown_words(root: Path, task: str) -> None:
    kind, name, paths = TASKS[task]
    files: dict[str, Any] = {
        split: f"{root}/{name.format(val=split, dev=dev)}.json" for split, dev in SPLITS.items()
    }
    given: dict[str, Any] = {"image_root": str(root), "vocab": str(root / "vocab.txt")}
    given |= {key: f"{root}/{path}" for key, path in paths.items()}
    if task == "shards":
        files["train"] = None
    if task == "vqa":
        files["train"] = [files["train"], str(root / "vg_qa.json")]
        given["image_root"] = dict.fromkeys(("vqa", "vg"), str(root))
    views = plain_views(32, 0.5, 0.5, {"op": "flip"}, {"op": "rand_augment"})
    made = kind(files=files, augmentation=views, batch_size=8, **given)
    unknown = WordPiece(str(root / "vocab.txt")).unk_id
    for stage in ("fit", "test"):
        made.setup(stage)
    for loader in (made.train_dataloader(), made.val_dataloader(), made.test_dataloader()):
        batches = list(loader)
        assert batches
        for batch in batches:
            assert torch.isfinite(batch["images"]).all()
            assert batch["images"].shape[1:] == (3, 32, 32)
            assert not (batch["input_ids"] == unknown).any()


def test_shards_hold_the_training_pairs(root: Path) -> None:
    samples = ShardSamples(root / "shards" / "*.tar")
    assert len(samples.shards) == 2
    entries = read(root, "pairs_train.json")
    numbers = np.arange(len(entries))
    shown = [samples.entry(number) for number in range(len(entries))]
    assert [e["caption"] for e in shown] == [e["caption"] for e in entries]
    pictures, used = samples.take(numbers)
    np.testing.assert_array_equal(used, numbers)
    for picture, entry in zip(pictures, entries, strict=True):
        np.testing.assert_array_equal(picture, np.asarray(Image.open(root / entry["image"])))
    ids = np.array([image_id(entry) for entry in shown])
    first, second = ids.reshape(-1, 2).T
    np.testing.assert_array_equal(first, second)
    assert len(set(first)) == TRAIN


def test_building_twice_changes_nothing(tmp_path: Path, root: Path) -> None:
    found = pairs(tmp_path, TRAIN, TEST)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert pairs(tmp_path, TRAIN, TEST) == found
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time or path.name == ".lock"
        if path.name != ".lock":
            assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes()
    content = found["synthetic-pairs"]
    assert content["licence"] == "CC0-1.0"
    assert {"dets.json", "refcoco+/refs(unc).p", "shards/pairs-000001.tar"} <= set(content["files"])
    (tmp_path / "dets.json").write_text("{")
    with pytest.raises(DataCorruptError, match=r"dets.json: damaged; delete"):
        pairs(tmp_path, TRAIN, TEST)


def test_other_sizes(tmp_path: Path) -> None:
    pairs(tmp_path, train=132, test=2, image_size=20)  # more pictures than contents
    assert Image.open(tmp_path / "images" / f"{135:012}.png").size == (20, 20)
    one, other = (pairs(tmp_path / str(seed), train=2, test=2, seed=seed) for seed in range(2))
    assert one != other
    for changes in ({"train": 1}, {"test": 0}, {"image_size": 8}):
        with pytest.raises(ValueError, match="at least two pictures of 16 px"):
            pairs(tmp_path, **changes)
