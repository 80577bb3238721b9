"""Captioning: batches of training and evaluation, ids of images, references, every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.captioning import CaptioningData, References, read_references
from tests.unit.views_toy import plain_views

WORDS = ["a", "picture", "of", "red", "dog", "cat", ",", "##s", "-"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
DEC = len(VOCABULARY)
Entries = list[dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number,) * 3).save(tmp_path / f"x_{number:012}.png")
    return tmp_path


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"x_{number:012}.png", **more}


def data(root: Path, train: Entries = (), val: Entries = (), **changes: Any) -> CaptioningData:  # type: ignore[assignment]
    for name, content in (("train", train), ("val", val)):
        (root / f"{name}.json").write_text(json.dumps(content))
    arguments: dict[str, Any] = {
        "files": {"train": str(root / "train.json"), "val": str(root / "val.json")},
        "image_root": str(root),
        "vocab": str(root),
        "augmentation": plain_views(8, 0.0, 1.0, {"op": "random_resized_crop"}, {"op": "jitter"}),
        "batch_size": 2,
        "val_split": "val" if val else None,
        "test_split": None,
    }
    return CaptioningData(**arguments | changes)


def batches(module: CaptioningData, epoch: int = 0) -> list[dict[str, Any]]:
    module.setup("fit")
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def test_a_training_text_is_prompt_and_caption_between_special_tokens(root: Path) -> None:
    captions = [entry(0, caption="A red DOG!", image_id=0), entry(0, caption="cats, a-dog " * 30)]
    module = data(root, captions)
    (batch,) = batches(module)
    rows = batch["input_ids"][batch["indices"].argsort()].tolist()
    prompt = [5, 6, 7]
    assert rows[0] == [2, *prompt, 5, 8, 9, 3] + [0] * 32
    assert len(rows[1]) == 40
    assert rows[1][:10] == [2, *prompt, 10, 12, 11, 5, 13, 9]
    assert rows[1][-1] == 3, "a cut text keeps its end"
    assert batch["attention_mask"].sum(1).tolist() == [
        len(r) - r.count(0) for r in [batch["input_ids"][i].tolist() for i in range(2)]
    ]
    assert module.opening.tolist() == [DEC, *prompt]
    short = data(root, captions, prompt="", max_text_tokens=4, max_words=2)
    (batch,) = batches(short)
    assert sorted(batch["input_ids"].tolist()) == [[2, 5, 8, 3], [2, 10, 12, 3]]


def test_worker_processes_and_cuts_change_nothing(root: Path) -> None:
    captions = [entry(n, caption=f"a {word}") for n in range(6) for word in ("dog", "red cat")]
    val = [entry(n) for n in range(6)]
    alone, helped = data(root, captions, val), data(root, captions, val, num_workers=2)
    for one, other in zip(batches(alone, 1), batches(helped, 1), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    evaluated = [list(module.val_dataloader()) for module in (alone, helped)]
    for one, other in zip(*evaluated, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_captions_without_a_word_are_left_out(root: Path) -> None:
    captions = [entry(n, caption=text) for n, text in enumerate(["dog", "...", "", "cat"])]
    (batch,) = batches(data(root, captions))
    assert sorted(batch["indices"].tolist()) == [0, 3]
    for bad, message in (("...", "its caption has no word"), (["dog"], "expected one text")):
        with (
            pytest.warns(UserWarning, match=rf"train\.json, entry 0: .*{message}"),
            pytest.raises(DataCorruptError, match="no training entry can be used"),
        ):
            batches(data(root, [entry(0, caption=bad)]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val2014/COCO_val2014_000000522418.jpg", 522418),
        ("flickr30k-images/1007129816.jpg", 1007129816),
        ("a_1/b_2_3.png", 3),
        ("a_1/b.png", None),
        ("a_.png", None),
        ("a_1x.png", None),
        ("a_²٣.png", None),
        ("a_-1.png", None),
        (f"a_{2**63}.png", None),
        (f"a_{'9' * 5000}.png", None),
    ],
)
def test_ids_of_file_names(root: Path, name: str, expected: int | None) -> None:
    module = data(root, [entry(0, caption="dog")])
    assert module._id_of({"image": name}) == expected
    assert (module.problem({"image": name}, "val") is None) == (expected is not None)
    assert module._id_of({"image": name, "img_id": 7}) == 7
    for wrong in ("7", True, None, 2**70):
        assert "img_id is" in (module.problem({"image": name, "img_id": wrong}, "val") or "")


def coco(root: Path, texts: dict[int, list[Any]], domains: dict[int, Any] | None = None) -> str:
    images = [
        {"id": n} | ({"domain": domains[n]} if domains and n in domains else {}) for n in texts
    ]
    said = [{"image_id": n, "caption": text} for n, own in texts.items() for text in own]
    path = root / "gt.json"
    path.write_text(json.dumps({"images": images, "annotations": said}))
    return str(path)


def test_evaluation_of_coco(root: Path) -> None:
    val = [entry(3, caption=["A dog.", "a cat"]), entry(1, caption=["red"])]
    module = data(root, val=val)
    (batch,) = module.val_dataloader()
    assert set(batch) == {"images", "indices", "image_ids"}
    assert batch["image_ids"].tolist() == [3, 1]
    assert batch["image_ids"].dtype == torch.int64
    assert module.references("val") == References({3: ["A dog.", "a cat"], 1: ["red"]})
    path = coco(root, {1: ["From a file", "of references"], 3: ["x"]})
    module = data(root, val=val, references={"val": path})
    assert module.references("val") == References({1: ["From a file", "of references"], 3: ["x"]})


def test_evaluation_of_nocaps(root: Path) -> None:
    val = [entry(3, img_id=0), entry(1, img_id=4499)]
    module = data(root, val=val)
    (batch,) = module.val_dataloader()
    assert batch["image_ids"].tolist() == [0, 4499]
    assert module.references("val") is None, "a server has them"
    path = coco(root, {0: ["x"], 4499: ["y"]}, {0: "in-domain", 4499: "out-domain"})
    found = data(root, val=val, references={"val": path}).references("val")
    assert found is not None
    assert found.domains == {0: "in-domain", 4499: "out-domain"}


def test_evaluation_entries_that_are_refused(root: Path) -> None:
    twice = [entry(3), entry(1), {"image": "x_1.png", "img_id": 3}]
    with pytest.raises(
        DataCorruptError, match=r"val\.json, entry 2: the image id 3 is that of .*entry 0, too"
    ):
        data(root, val=twice).setup("validate")
    for caption in ("a text", [], ["a", 1], ["a", " "]):
        with pytest.raises(DataCorruptError, match=r"val\.json, entry 0: caption is .*list of te"):
            data(root, val=[entry(3, caption=caption)]).setup("validate")
    with pytest.raises(DataCorruptError, match=r"entry 0: no integer behind the last _ .*'dog.png"):
        data(root, val=[{"image": "dog.png"}]).setup("validate")
    some = [entry(3, caption=["dog"]), entry(1)]
    with pytest.raises(DataCorruptError, match=r"val\.json, entry 1: no caption, other images"):
        data(root, val=some).references("val")


def test_references_of_other_images(root: Path) -> None:
    path = coco(root, {3: ["x"], 8: ["y"]})
    with pytest.raises(
        DataCorruptError, match=r"entry 1: image id 1 is not in the references .*gt"
    ):
        data(root, val=[entry(3), entry(1)], references={"val": path}).references("val")
    with pytest.raises(DataCorruptError, match=r"gt\.json: 1 images, the first is 8, are not in"):
        data(root, val=[entry(3)], references={"val": path}).references("val")
    with pytest.raises(DataNotFoundError, match=r"none\.json not found"):
        data(root, val=[entry(3)], references={"val": str(root / "none.json")}).references("val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object with the lists images, annotations"),
        ({"images": [], "annotations": []}, "no images"),
        ({"images": []}, "annotations: expected a list, got NoneType"),
        (
            {"images": [{"id": "1"}], "annotations": []},
            "entry 0: id is '1', expected an int",
        ),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, "entry 1: id 1 is there before"),
        ({"images": [{"id": 1}], "annotations": []}, "image 1 has no caption"),
        ({"images": [{"id": 1}], "annotations": [3]}, "annotations, entry 0: 3 is no object"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]},
            "image_id 2 is the id of no image",
        ),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": " "}]},
            "entry 0: caption is ' ', expected a text",
        ),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "\ud83d"}]},
            "expected a text",
        ),
        ({"images": [{"id": 1, "domain": 3}], "annotations": []}, "domain is 3, expected a text"),
        (
            {"images": [{"id": 1, "domain": "in"}, {"id": 2}], "annotations": []},
            "some images name their domain, others don't",
        ),
    ],
)
def test_damaged_references(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataCorruptError, match=rf"gt\.json.*{message}"):
        read_references(path)


def test_prompts_that_hide_the_caption(root: Path) -> None:
    with pytest.raises(ValueError, match="prompt='a picture of': a space at its end"):
        data(root, prompt="a picture of")
    with pytest.raises(ValueError, match=r"max_text_tokens=5 has no room .*give 6 at least"):
        batches(data(root, [entry(n, caption="dog") for n in range(2)], max_text_tokens=5))
