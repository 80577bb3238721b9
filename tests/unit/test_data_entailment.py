"""SNLI-VE's batches: names of pictures, labels, bad entries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.entailment import EntailmentData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs"]
CLS, A, DOG, RUNS = 2, 5, 6, 7
LABELS = ["entailment", "neutral", "contradiction", "entailment"]
SENTENCES = ["A dog runs.", "a dog", "RUNS", ""]
VIEWS = {
    "_target_": "shared.data.views.recipes.RecipeViews",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "size": 8,
    "test_resize": None,
    "recipes": {"train": [{"op": "resize"}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Entry i is about a picture of the grey value 50 i."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for number in range(4):
        Image.fromarray(np.full((9, 12, 3), 50 * number, np.uint8)).save(tmp_path / f"{number}.jpg")
    write(tmp_path, entries())
    return tmp_path


def entries() -> list[dict[str, Any]]:
    return [
        {"image": str(number), "sentence": sentence, "label": label}
        for number, (sentence, label) in enumerate(zip(SENTENCES, LABELS, strict=True))
    ]


def write(folder: Path, content: list[dict[str, Any]]) -> None:
    (folder / "ve.json").write_text(json.dumps(content))


def data(folder: Path, **changed: Any) -> EntailmentData:
    file = str(folder / "ve.json")
    arguments: dict[str, Any] = {
        "files": {"train": file, "val": file, "test": file},
        "image_root": str(folder),
        "vocab": str(folder / "vocab.txt"),
        "augmentation": VIEWS,
        "batch_size": 4,
        "eval_batch_size": 3,
        "max_corrupt": 0.5,
    }
    return EntailmentData(**arguments | changed)


def test_pictures_labels_and_texts_of_the_official_format(folder: Path) -> None:
    first, second = data(folder).test_dataloader()
    greys = [round(float(image.mean()) * 255) for image in (*first["images"], *second["images"])]
    assert greys == [0, 50, 100, 150]
    assert first["images"].shape == (3, 3, 8, 8)
    assert first["labels"].tolist() + second["labels"].tolist() == [2, 1, 0, 2]
    assert first["labels"].dtype == torch.int64
    assert first["input_ids"].tolist() == [
        [CLS, A, DOG, RUNS],
        [CLS, A, DOG, 0],
        [CLS, RUNS, 0, 0],
    ]
    # A sentence without words is still judged, by [CLS] alone.
    assert second["input_ids"].tolist() == second["attention_mask"].mul(CLS).tolist() == [[CLS]]


def test_training_batches_hold_the_same(folder: Path) -> None:
    (batch,) = data(folder).train_dataloader()
    expected = torch.tensor([2, 1, 0, 2])[batch["indices"]]
    assert torch.equal(batch["labels"], expected)
    greys = [round(float(image.mean()) * 255) for image in batch["images"]]
    assert greys == (50 * batch["indices"]).tolist()


def test_an_unreadable_picture_leaves_its_entry_out(folder: Path) -> None:
    (folder / "1.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1\.jpg: unreadable image skipped"):
        first, second = data(folder).val_dataloader()
    assert first["labels"].tolist() + second["labels"].tolist() == [2, 0, 2]


def test_an_unknown_label_is_named_with_the_known_ones(folder: Path) -> None:
    content = entries()
    content[1]["label"] = "-"
    write(folder, content)
    known = "'contradiction', 'neutral', 'entailment'"
    with pytest.raises(DataCorruptError) as caught:
        data(folder).setup("test")
    assert f"ve.json, entry 1: label '-' is unknown; known are {known}" in str(caught.value)
    with pytest.warns(UserWarning, match=f"entry 1: label '-' is unknown; known are {known}"):
        (batch,) = data(folder, batch_size=3).train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 17}, "entry 3: 'image' is 17, expected str"),
        ({"image": "../x"}, "entry 3: image '../x.jpg' is outside"),
        ({"sentence": ["a"]}, "entry 3: 'sentence' is \\['a'\\], expected str"),
    ],
)
def test_bad_entries_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    content = entries()
    content[3] |= change
    write(folder, content)
    with pytest.raises(DataCorruptError, match=message):
        data(folder).setup("fit")


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"none\.json not found"):
        data(folder, files={"train": str(folder / "none.json")}).setup("fit")


def test_class_names_are_in_the_order_of_the_labels() -> None:
    assert EntailmentData.class_names == ("contradiction", "neutral", "entailment")
