"""NLVR2's batches: layout, labels, unreadable pictures, bad entries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.nlvr import NLVRData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "left", "red"]
CLS, A, DOG, LEFT, RED = 2, 5, 6, 7, 8
SIDE = 8
PLAIN = {
    "_target_": "shared.data.views.recipes.RecipeViews",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "size": SIDE,
    "test_resize": None,
    "recipes": {"train": [{"op": "resize"}]},
}
CROPPED = PLAIN | {"recipes": {"train": [{"op": "random_resized_crop", "scale": [0.2, 0.6]}]}}
SENTENCES = ["A dog, left.", "Red!", "a red/red dog", "dog"]
LABELS = ["True", "False", "False", "True"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Entry i has pictures of the grey values 10 i and 10 i + 100."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for value in (0, 10, 20, 30, 100, 110, 120, 130):
        pixels = np.full((10, 14, 3), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "dev" / f"{value}.png")
    write(tmp_path, entries())
    return tmp_path


def entries() -> list[dict[str, Any]]:
    return [
        {
            "images": [f"dev/{10 * i}.png", f"dev/{10 * i + 100}.png"],
            "sentence": sentence,
            "label": label,
        }
        for i, (sentence, label) in enumerate(zip(SENTENCES, LABELS, strict=True))
    ]


def write(folder: Path, content: list[dict[str, Any]]) -> None:
    (folder / "nlvr.json").write_text(json.dumps(content))


def data(folder: Path, **changed: Any) -> NLVRData:
    file = str(folder / "nlvr.json")
    arguments: dict[str, Any] = {
        "files": {"train": file, "val": file, "test": file},
        "image_root": str(folder),
        "vocab": str(folder),
        "augmentation": PLAIN,
        "batch_size": 4,
        "eval_batch_size": 4,
        "max_corrupt": 0.5,
    }
    return NLVRData(**arguments | changed)


def greys(images: torch.Tensor) -> list[int]:
    """The grey value of each picture, all of whose pixels are equal."""
    assert (images == images[:, :1, :1, :1]).all()
    return (images[:, 0, 0, 0] * 255).round().long().tolist()


def test_left_pictures_come_first_and_labels_are_one_for_true(folder: Path) -> None:
    (batch,) = data(folder).val_dataloader()
    assert batch["images"].shape == (8, 3, SIDE, SIDE)
    assert greys(batch["images"]) == [0, 10, 20, 30, 100, 110, 120, 130]
    assert batch["labels"].tolist() == [1, 0, 0, 1]
    assert batch["indices"].tolist() == [0, 1, 2, 3]
    assert batch["labels"].dtype == batch["indices"].dtype == torch.int64


def test_sentences_are_cleaned_and_padded_to_the_longest(folder: Path) -> None:
    (batch,) = data(folder).test_dataloader()
    assert batch["input_ids"].tolist() == [
        [CLS, A, DOG, LEFT, 0],
        [CLS, RED, 0, 0, 0],
        [CLS, A, RED, RED, DOG],
        [CLS, DOG, 0, 0, 0],
    ]
    assert batch["attention_mask"].tolist() == (batch["input_ids"] > 0).long().tolist()


def test_long_sentences_lose_words_never_pieces(folder: Path) -> None:
    write(folder, [entries()[0] | {"sentence": "dog " * 40}])
    (batch,) = data(folder).val_dataloader()
    assert batch["input_ids"].shape == (1, 31)
    (batch,) = data(folder, max_words=3).val_dataloader()
    assert batch["input_ids"].shape == (1, 4)


def test_training_keeps_pictures_sentences_and_labels_together(folder: Path) -> None:
    batches = list(data(folder, batch_size=2).train_dataloader())
    assert len(batches) == 2
    seen = []
    for batch in batches:
        seen += batch["indices"].tolist()
        left, right = (greys(images) for images in batch["images"].chunk(2))
        assert left == [10 * i for i in batch["indices"].tolist()]
        assert right == [10 * i + 100 for i in batch["indices"].tolist()]
        expected = [int(LABELS[i] == "True") for i in batch["indices"].tolist()]
        assert batch["labels"].tolist() == expected
    assert sorted(seen) == [0, 1, 2, 3]


def test_both_pictures_are_augmented_independently(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "dev" / "noise.png")
    write(folder, [entry | {"images": ["dev/noise.png"] * 2} for entry in entries()])
    (batch,) = data(folder, augmentation=CROPPED).train_dataloader()
    assert len(torch.unique(batch["images"], dim=0)) == 8


def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    (alone,) = data(folder, augmentation=CROPPED).train_dataloader()
    (helped,) = data(folder, augmentation=CROPPED, num_workers=1).train_dataloader()
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_an_entry_with_one_unreadable_picture_is_left_out(folder: Path) -> None:
    (folder / "dev" / "110.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"110\.png: unreadable image skipped"):
        (batch,) = data(folder).val_dataloader()
    assert batch["indices"].tolist() == [0, 2, 3]
    assert greys(batch["images"]) == [0, 20, 30, 100, 120, 130]
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["input_ids"][1, 2] == RED


def test_in_training_the_next_entry_stands_in_for_it(folder: Path) -> None:
    (folder / "dev" / "110.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="unreadable"):
        (batch,) = data(folder).train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 2, 2, 3]
    left, right = (greys(images) for images in batch["images"].chunk(2))
    assert [a + 100 for a in left] == right == [10 * i + 100 for i in batch["indices"].tolist()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "true"}, "entry 2: label 'true' is unknown; known are 'False', 'True'"),
        ({"images": ["dev/0.png"]}, "entry 2: expected two pictures in `images`, it has 1"),
        ({"images": ["dev/0.png"] * 3}, "entry 2: expected two pictures in `images`, it has 3"),
        ({"label": True}, "entry 2: 'label' is True, expected str"),
        ({"images": "dev/0.png"}, "entry 2: 'images' is 'dev/0.png', expected list"),
        ({"sentence": None}, "entry 2: 'sentence' is None, expected str"),
        ({"images": ["dev/0.png", "../0.png"]}, "entry 2: image '../0.png' is outside"),
    ],
)
def test_bad_entries_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    content = entries()
    content[2] |= change
    write(folder, content)
    with pytest.raises(DataCorruptError) as caught:
        data(folder).setup("test")
    assert message in str(caught.value)
    assert str(folder / "nlvr.json") in str(caught.value)


def test_a_missing_key_is_named(folder: Path) -> None:
    content = entries()
    del content[1]["sentence"]
    write(folder, content)
    with pytest.raises(DataCorruptError, match="entry 1 has no 'sentence'"):
        data(folder).setup("fit")


def test_training_leaves_entries_of_unknown_label_out(folder: Path) -> None:
    content = entries()
    content[2]["label"] = "?"
    write(folder, content)
    with pytest.warns(UserWarning, match=r"1 of 4 .*entry 2: label '\?' is unknown; known are"):
        (batch,) = data(folder, batch_size=3).train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 1, 3]


def test_a_wrong_root_is_told_before_training(folder: Path) -> None:
    with pytest.raises(DataNotFoundError, match="none of 8 images is there"):
        data(folder, image_root=str(folder / "elsewhere")).setup("fit")


def test_class_names_are_in_the_order_of_the_labels() -> None:
    assert NLVRData.class_names == ("False", "True")
