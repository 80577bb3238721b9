"""NLVR2's and SNLI-VE's batches: pictures, labels, unreadable pictures, bad entries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from views_toy import plain_views

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.labelled_sentences import EntailmentData, NLVRData, SentenceData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "left", "red"]
CLS, A, DOG, LEFT, RED = 2, 5, 6, 7, 8
PLAIN = plain_views(8, 0.0, 1.0, {"op": "resize"})
CROPPED = plain_views(8, 0.0, 1.0, {"op": "random_resized_crop", "scale": [0.2, 0.6]})
SENTENCES = ["A dog, left.", "Red!", "a red/red dog", ""]
LABELS = {
    NLVRData: ["True", "False", "False", "True"],
    EntailmentData: ["entailment", "neutral", "contradiction", "entailment"],
}
NUMBERS = {NLVRData: [1, 0, 0, 1], EntailmentData: [2, 1, 0, 2]}
KINDS = pytest.mark.parametrize("kind", [NLVRData, EntailmentData])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of the grey values that name them; entry i has 10 i, and in NLVR2 10 i + 100 too."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for value in (0, 10, 20, 30, 100, 110, 120, 130):
        picture = Image.fromarray(np.full((10, 14, 3), value, np.uint8))
        picture.save(tmp_path / f"{value}.jpg", quality=100)
    return tmp_path


def entries(kind: type[SentenceData]) -> list[dict[str, Any]]:
    def pictures(i: int) -> dict[str, Any]:
        if kind is NLVRData:
            return {"images": [f"{10 * i}.jpg", f"{10 * i + 100}.jpg"]}
        return {"image": str(10 * i)}

    rows = enumerate(zip(SENTENCES, LABELS[kind], strict=True))
    return [pictures(i) | {"sentence": text, "label": label} for i, (text, label) in rows]


def data(kind: type[SentenceData], folder: Path, content: Any = None, **changed: Any) -> Any:
    file = folder / "given.json"
    file.write_text(json.dumps(entries(kind) if content is None else content))
    arguments: dict[str, Any] = {
        "files": dict.fromkeys(("train", "val", "test"), str(file)),
        "image_root": str(folder),
        "vocab": str(folder),
        "augmentation": PLAIN,
        "batch_size": 4,
        "eval_batch_size": 4,
        "max_corrupt": 0.5,
    }
    return kind(**arguments | changed)


def greys(images: torch.Tensor) -> list[int]:
    return (images.mean(dim=(1, 2, 3)) * 255).round().long().tolist()


@KINDS
def test_batches_of_the_official_format(kind: type[SentenceData], folder: Path) -> None:
    """Left pictures come first; a sentence without words is judged by [CLS] alone."""
    pictures = [0, 10, 20, 30] + ([100, 110, 120, 130] if kind is NLVRData else [])
    (batch,) = data(kind, folder).val_dataloader()
    assert batch["images"].shape == (len(pictures), 3, 8, 8)
    assert greys(batch["images"]) == pictures
    assert batch["labels"].tolist() == NUMBERS[kind]
    assert batch["indices"].tolist() == [0, 1, 2, 3]
    assert batch["labels"].dtype == batch["indices"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [
        [CLS, A, DOG, LEFT, 0],
        [CLS, RED, 0, 0, 0],
        [CLS, A, RED, RED, DOG],
        [CLS, 0, 0, 0, 0],
    ]
    assert batch["attention_mask"].tolist() == (batch["input_ids"] > 0).long().tolist()
    (batch,) = data(kind, folder).train_dataloader()
    order = batch["indices"].tolist()
    assert sorted(order) == [0, 1, 2, 3]
    assert greys(batch["images"]) == [
        10 * i + more for more in (0, 100)[: len(pictures) // 4] for i in order
    ]
    assert batch["labels"].tolist() == [NUMBERS[kind][i] for i in order]


def test_long_sentences_lose_words_never_pieces(folder: Path) -> None:
    content = [entries(NLVRData)[0] | {"sentence": "dog " * 40}]
    for words, length in ((30, 31), (3, 4)):
        (batch,) = data(NLVRData, folder, content, max_words=words).val_dataloader()
        assert batch["input_ids"].shape == (1, length)


def test_both_pictures_are_augmented_independently_by_any_worker(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    content = [entry | {"images": ["noise.png"] * 2} for entry in entries(NLVRData)]
    alone, helped = (
        next(iter(data(NLVRData, folder, content, augmentation=CROPPED, num_workers=n)
                  .train_dataloader()))
        for n in (0, 1)
    )  # fmt: skip
    assert len(torch.unique(alone["images"], dim=0)) == 8
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_an_entry_with_one_unreadable_picture(folder: Path) -> None:
    """It is left out of evaluation; in training the next entry stands in for it."""
    (folder / "110.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"110\.jpg: unreadable image skipped"):
        (batch,) = data(NLVRData, folder).val_dataloader()
    assert batch["indices"].tolist() == [0, 2, 3]
    assert greys(batch["images"]) == [0, 20, 30, 100, 120, 130]
    assert batch["labels"].tolist() == [1, 0, 1]
    with pytest.warns(UserWarning, match="unreadable"):
        (batch,) = data(NLVRData, folder).train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 2, 2, 3]


KNOWN = "known are 'contradiction', 'neutral', 'entailment'"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (NLVRData, {"label": "true"}, "label 'true' is unknown; known are 'False', 'True'"),
        (NLVRData, {"images": ["0.jpg"]}, "expected two pictures in `images`, it has 1"),
        (NLVRData, {"images": ["0.jpg"] * 3}, "expected two pictures in `images`, it has 3"),
        (NLVRData, {"label": True}, "'label' is True, expected str"),
        (NLVRData, {"images": "0.jpg"}, "'images' is '0.jpg', expected list"),
        (NLVRData, {"sentence": None}, "'sentence' is None, expected str"),
        (NLVRData, {"images": ["0.jpg", "../0.jpg"]}, "image '../0.jpg' is outside"),
        (EntailmentData, {"label": "-"}, f"label '-' is unknown; {KNOWN}"),
        (EntailmentData, {"image": 17}, "'image' is 17, expected str"),
        (EntailmentData, {"image": "../x"}, "image '../x.jpg' is outside"),
    ],
)
def test_bad_entries_are_named(
    kind: type[SentenceData], folder: Path, change: dict[str, Any], message: str
) -> None:
    content = entries(kind)
    content[2] |= change
    with pytest.raises(DataCorruptError) as caught:
        data(kind, folder, content).setup("test")
    assert f"{folder / 'given.json'}, entry 2: {message}" in str(caught.value)


def test_training_leaves_entries_of_unknown_label_out(folder: Path) -> None:
    content = entries(EntailmentData)
    content[2]["label"] = "-"
    with pytest.warns(UserWarning, match=f"1 of 4 .*entry 2: label '-' is unknown; {KNOWN}"):
        (batch,) = data(EntailmentData, folder, content, batch_size=3).train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 1, 3]


def test_a_missing_key_and_a_wrong_root_are_told_before_training(folder: Path) -> None:
    content = entries(NLVRData)
    del content[1]["sentence"]
    with pytest.raises(DataCorruptError, match="entry 1 has no 'sentence'"):
        data(NLVRData, folder, content).setup("fit")
    with pytest.raises(DataNotFoundError, match="none of 8 images is there"):
        data(NLVRData, folder, image_root=str(folder / "elsewhere")).setup("fit")
