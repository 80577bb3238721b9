"""ImageTextData and PairData: documented batches, invariances, replacement, every refusal."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from views_toy import plain_views

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import (
    EntryImages,
    ImageTextBatch,
    ImageTextData,
    Keys,
    PairData,
    image_id,
)

WORDS = ["red", "green", "blue", "dog", "cat", "bird", "one", "two", "on", "grass"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
IMAGES = 12  # picture i is plain, of grey 10 i, and of changing size


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures with two captions each in training, as entries of their own."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "images").mkdir()
    for i in range(IMAGES):
        colour = (10 * i, 10 * i, 10 * i)
        Image.new("RGB", (8 + i, 8), colour).save(folder / "images" / f"{i}.png")
    train = [
        {"image": f"images/{i}.png", "caption": f"{WORDS[i % 10]} {word}", "image_id": f"x{i}"}
        for i in range(IMAGES)
        for word in ("dog", "cat on grass")
    ]
    val = [{"image": f"images/{i}.png", "caption": ["Red!", f"{WORDS[i]} dog"]} for i in range(5)]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "val.json").write_text(json.dumps(val))
    return folder


def arguments(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "files": {"train": str(root / "train.json"), "val": str(root / "val.json")},
        "image_root": str(root),
        "vocab": str(root),
        "augmentation": plain_views(8, 0.0, 1.0, {"op": "random_resized_crop"}, {"op": "jitter"}),
        "batch_size": 6,
        "eval_batch_size": 2,
    } | changes


def pairs(root: Path, **changes: Any) -> PairData:
    return PairData(**arguments(root, **changes))


def with_entries(root: Path, name: str, entries: Any) -> dict[str, str]:
    """The `files` of a training set of its own."""
    path = root / f"{name}.json"
    path.write_text(json.dumps(entries))
    return {"train": str(path), "val": str(root / "val.json")}


def epoch(data: ImageTextData, number: int = 0) -> list[ImageTextBatch]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.set_epoch(number)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def equal(one: Sequence[ImageTextBatch], other: Sequence[ImageTextBatch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def captions(data: PairData, batch: ImageTextBatch) -> list[str]:
    """The batch's texts, read back."""
    pieces = [
        [VOCABULARY[i] for i, kept in zip(ids, mask, strict=True) if kept]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert all(text[0] == "[CLS]" for text in pieces)
    return [" ".join(text[1:]) for text in pieces]


def test_a_training_batch(root: Path) -> None:
    data = pairs(root)
    batches = epoch(data)
    assert len(batches) == 4
    for batch in batches:
        assert batch["images"].shape == (6, 3, 8, 8)
        assert batch["images"].dtype == torch.float32
        assert all(batch[key].dtype == torch.int64 for key in ("indices", "input_ids", "image_ids"))
        longest = max(int(mask.sum()) for mask in batch["attention_mask"])
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (6, longest)
        rows = data.entries("train")
        assert captions(data, batch) == [rows[i]["caption"] for i in batch["indices"]]
        expected = [image_id(rows[int(i)]) for i in batch["indices"]]
        assert batch["image_ids"].tolist() == expected
    together = torch.cat([batch["indices"] for batch in batches])
    assert sorted(together.tolist()) == list(range(24)), "one pass"


def test_worker_processes_change_nothing(root: Path) -> None:
    alone, helped = pairs(root), pairs(root, num_workers=2, cache_images=True)
    assert equal(epoch(alone, 1), epoch(helped, 1))
    assert equal(list(alone.val_dataloader()), list(helped.val_dataloader()))


def test_goes_on_in_the_middle_of_an_epoch(root: Path) -> None:
    whole = epoch(pairs(root), 1)
    data = pairs(root)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 1, "position": 2, "length": 4})
    assert equal(list(loader), whole[2:])


def test_ranks_share_a_batch(root: Path) -> None:
    whole = epoch(pairs(root))
    parts = []
    for rank in range(2):
        data = pairs(root)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        parts.append(epoch(data))
        evaluated = torch.cat([batch["indices"] for batch in data.val_dataloader()])
        assert evaluated.tolist() == list(range(rank, 5, 2))
    for batch, one, two in zip(whole, *parts, strict=True):
        for key in ("images", "indices", "image_ids"):
            assert torch.equal(batch[key], torch.cat([one[key], two[key]]))


def test_steps_per_epoch(root: Path) -> None:
    batches = epoch(pairs(root, steps_per_epoch=10))
    drawn = torch.cat([batch["indices"] for batch in batches]).bincount()
    assert len(batches) == 10
    assert (drawn >= 2).all()
    assert drawn.sum() == 60


def test_subset(root: Path) -> None:
    data = pairs(root, subset=8)
    members = torch.cat([b["indices"] for b in epoch(data) + epoch(data, 1) + epoch(data, 2)])
    assert len(set(members.tolist())) == 8
    assert equal(epoch(data), epoch(pairs(root, subset=8)))
    other = pairs(root, subset=8, subset_seed=1)
    assert set(other.source.members) != set(data.source.members)  # type: ignore[attr-defined]


def test_one_of_several_captions_is_drawn(root: Path) -> None:
    texts = ["one dog", "two dog", "", "!"]
    entries = [{"image": f"images/{i}.png", "caption": texts} for i in range(IMAGES)]
    data = pairs(root, files=with_entries(root, "several", entries))
    drawn = [captions(data, b) for number in range(5) for b in epoch(data, number)]
    counts = [sum(text == wanted for batch in drawn for text in batch) for wanted in texts[:2]]
    assert sum(counts) == 5 * IMAGES
    assert min(counts) > 14  # of 30: four standard deviations
    assert drawn[:2] == [captions(data, b) for b in epoch(data, 0)]


def test_captions_are_cleaned_and_cut(root: Path) -> None:
    entries = [{"image": "images/0.png", "caption": "A red-DOG, " + "one " * 100}] * 2
    files = with_entries(root, "long", entries)
    data = pairs(root, files=files, batch_size=2)
    (batch,) = epoch(data)
    assert captions(data, batch) == [" ".join(["[UNK] red dog", *["one"] * 21])] * 2
    data = pairs(root, files=files, batch_size=2, max_text_tokens={"train": None})
    assert epoch(data)[0]["input_ids"].shape == (2, 31)  # 30 words
    data = pairs(root, files=files, batch_size=2, max_words=4)
    assert captions(data, epoch(data)[0]) == ["[UNK] red dog one"] * 2


def test_image_ids_tell_images_apart(root: Path) -> None:
    zero, one = ({"image": f"images/{i}.png", "caption": "dog"} for i in range(2))
    entries = [one, zero, one, zero | {"image_id": 7}]
    entries += [one | {"image_id": number} for number in (7, "7", None, "images/1.png")]
    data = pairs(root, files=with_entries(root, "identities", entries))
    assert len(data.source.images) == 2  # type: ignore[attr-defined]
    data.setup("fit")
    ids = [image_id(entry) for entry in data.entries("train")]
    assert [ids.index(number) for number in ids] == [0, 1, 0, 3, 3, 5, 0, 7]
    assert all(0 <= number < 2**63 for number in ids)


def test_evaluation_batches(root: Path) -> None:
    data = pairs(root)
    batches = list(data.val_dataloader())
    assert [batch["indices"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    for batch in batches:
        count = len(batch["indices"])
        assert set(batch) == {"images", "indices", "input_ids", "attention_mask", "text_image"}
        assert batch["images"].shape == (count, 3, 8, 8)
        greys = (batch["images"] * 255).round().flatten(1)
        assert (greys == 10 * batch["indices"][:, None]).all()
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2 * count, 30)
        assert batch["text_image"].tolist() == [i for i in batch["indices"] for _ in range(2)]
        expected = [text for i in batch["indices"] for text in ("red", f"{WORDS[i]} dog")]
        assert captions(data, batch) == expected


def test_empty_captions_of_evaluation_are_left_out(root: Path) -> None:
    entries = [
        {"image": "images/0.png", "caption": ["...", "dog", ""]},
        {"image": "images/1.png", "caption": "one cat"},
    ]
    files = {"test": with_entries(root, "test", entries)["train"]}
    data = pairs(root, files=files, max_text_tokens={"eval": None})
    (batch,) = data.test_dataloader()
    assert captions(data, batch) == ["dog", "one cat"]
    assert batch["text_image"].tolist() == [0, 1]
    assert batch["input_ids"].shape == (2, 3), "without a limit: the longest"


def test_without_evaluation(root: Path) -> None:
    data = pairs(root, files={"train": str(root / "train.json")}, val_split=None, test_split=None)
    data.setup("fit")
    assert data.val_dataloader() == data.test_dataloader() == []


def damaged(root: Path, name: str) -> dict[str, str]:
    """Three readable pictures, one that is missing and one that is none."""
    (root / "images" / "broken.png").write_bytes(b"no picture")
    names = ["0", "missing", "1", "broken", "2"]
    entries = [
        {"image": f"images/{n}.png", "caption": f"{word} dog"}
        for n, word in zip(names, WORDS, strict=False)
    ]
    files = with_entries(root, name, entries)
    return files | {"val": files["train"]}


def test_unreadable_pictures(root: Path) -> None:
    """In training the next readable entry stands in, with its texts; else they are left out."""
    data = pairs(root, files=damaged(root, "damaged"), batch_size=5, max_corrupt=0.5)
    with pytest.warns(UserWarning, match=r"(missing|broken)\.png: unreadable image skipped"):
        (batch,) = epoch(data)
    assert sorted(batch["indices"].tolist()) == [0, 2, 2, 4, 4]
    rows = data.entries("train")
    assert captions(data, batch) == [rows[i]["caption"] for i in batch["indices"]]
    with pytest.warns(UserWarning, match="unreadable"):
        batches = list(data.val_dataloader())
    assert [batch["indices"].tolist() for batch in batches] == [[0], [2], [4]]
    assert [batch["text_image"].tolist() for batch in batches] == [[0], [2], [4]]


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_too_many_unreadable_pictures(root: Path) -> None:
    data = pairs(root, files=damaged(root, "damaged"), batch_size=5, max_corrupt=0.3)
    with pytest.raises(DataCorruptError, match=r"2 of 5 images .*max_corrupt=0\.3"):
        epoch(data)
    data = pairs(root, files=damaged(root, "damaged"), eval_batch_size=1, max_corrupt=0.5)
    with pytest.raises(DataCorruptError, match="none of the 1 images of a batch"):
        list(data.val_dataloader())


def test_cut_off_pictures_are_read_as_far_as_they_go(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(root / "images" / "cut.jpg")
    content = (root / "images" / "cut.jpg").read_bytes()
    (root / "images" / "cut.jpg").write_bytes(content[: len(content) // 2])
    entries = [{"image": "images/cut.jpg", "caption": "dog"}]
    data = pairs(root, files=with_entries(root, "cut", entries), batch_size=1)
    assert len(epoch(data)) == 1


def test_cached_pictures_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    decode = EntryImages.content

    def counted(self: EntryImages, index: int) -> Any:
        reads.append(self.path(index))
        return decode(self, index)

    monkeypatch.setattr(EntryImages, "content", counted)
    data = pairs(root, cache_images=True)
    first = epoch(data)
    assert len(reads) == len(set(reads)) == IMAGES
    assert equal(first, epoch(data))
    assert len(reads) == IMAGES
    assert equal(first, epoch(pairs(root)))
    assert len(reads) == IMAGES + 24


def test_pictures_with_transparency(root: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(root / "images" / "clear.png")
    entries = [{"image": "images/clear.png", "caption": "dog"}]
    files = with_entries(root, "clear", entries)
    for mode, shape in (("RGB", (8, 8, 3)), ("RGBA", (8, 8, 4))):
        data = pairs(root, files=files, image_mode=mode)
        (picture,) = data.source.group(0)
        assert picture.shape == shape


class Twins(ImageTextData):
    """Two pictures an entry."""

    required: ClassVar = {"images": list[str]}

    def image_names(self, entry: Annotation) -> list[str]:
        if len(entry["images"]) != 2:
            raise DataCorruptError(f"{len(entry['images'])} images instead of 2")
        return entry["images"]

    def problem(self, entry: Annotation, split: str) -> str | None:
        return "it is marked as bad" if entry.get("bad") else None

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        drawn = [] if keys is None else keys.tolist()
        return {"numbers": [entry["index"] for entry in entries], "keys": drawn, "split": split}


def twins(root: Path, entries: Any, **changes: Any) -> Twins:
    files = with_entries(root, "twins", entries)
    return Twins(**arguments(root, files=files | {"val": files["train"]}, **changes))


def test_what_a_task_says_of_an_entry_names_its_place(root: Path) -> None:
    entries = [{"images": ["images/0.png"] * n} for n in (2, 3)]
    with pytest.raises(DataCorruptError, match=r"twins\.json, entry 1: 3 images instead of 2"):
        twins(root, entries).setup("fit")


def test_entries_with_a_problem(root: Path) -> None:
    good, bad = {"images": ["images/0.png"] * 2}, {"images": ["images/0.png"] * 2, "bad": True}
    data = twins(root, [bad, good, bad, good], batch_size=2)
    with pytest.warns(
        UserWarning, match=r"^2 of 4 .*left out.*twins\.json, entry 0: it is marked as bad"
    ):
        (batch,) = data.train_dataloader()
    assert sorted(batch["indices"].tolist()) == [1, 3]
    with pytest.raises(DataCorruptError, match=r"twins\.json, entry 0: it is marked as bad"):
        data.val_dataloader()
    data = twins(root, [bad])
    with (
        pytest.warns(UserWarning, match="1 of 1"),
        pytest.raises(DataCorruptError, match="no training entry can be used"),
    ):
        data.setup("fit")


def test_roots_of_several_data_sets(root: Path) -> None:
    roots = {"a": str(root / "images"), "b": str(root)}
    entries = [
        {"dataset": "a", "image": "3.png", "caption": "dog"},
        {"dataset": "b", "image": "images/4.png", "caption": "cat"},
    ]
    files = with_entries(root, "roots", entries)
    data = pairs(root, files=files | {"val": files["train"]}, image_root=roots)
    (batch,) = data.val_dataloader()
    assert (batch["images"] * 255).round()[:, 0, 0, 0].tolist() == [30, 40]
    files = with_entries(root, "roots", [*entries, {"image": "4.png", "caption": "cat"}])
    data = pairs(root, files=files, image_root=roots, batch_size=1)
    with pytest.raises(DataCorruptError, match=r"entry 2: `dataset` is None.*image_root has a, b"):
        data.setup("fit")


def test_without_a_root_pictures_lie_beside_their_annotations(root: Path) -> None:
    folders = [root / "images", root]
    files = []
    for folder, image in zip(folders, ("3.png", "images/4.png"), strict=True):
        entry = {"image": image, "caption": "dog"}
        (folder / "beside.json").write_text(json.dumps([entry]))
        files.append(str(folder / "beside.json"))
    data = pairs(root, files={"train": files, "val": files}, image_root=None, batch_size=1)
    (batch,) = data.val_dataloader()
    assert (batch["images"] * 255).round()[:, 0, 0, 0].tolist() == [30, 40]
    (root / "images" / "beside.json").write_text('[{"image": "../val.json", "caption": "dog"}]')
    with pytest.raises(DataCorruptError, match=r"beside\.json, entry 0"):
        pairs(root, files={"train": files}, image_root=None, batch_size=1).setup("fit")


def test_worker_processes_need_no_trainer(root: Path) -> None:
    """Those that aren't forked get the data set pickled."""
    data = pairs(root)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, what=lambda: 0)  # type: ignore[assignment]
    data.setup("fit")
    loader = data.train_dataloader()
    (plan,) = list(loader.schedule.batches(0))[:1]
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert equal([copy.__getitems__(plan)], [loader.dataset.__getitems__(plan)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 25}, r"batch_size=25 is larger than the training set \(24"),
        ({"batch_size": 25, "steps_per_epoch": 5}, r"batch_size=25 is larger .*\(24 entries\)"),
        ({"batch_size": 0}, "batch_size=0 is not a positive multiple"),
        ({"subset": 30}, "subset=30 but there are 24"),
        ({"subset": 5}, r"batch_size=6 is larger than the training set \(5"),
        ({"val_split": "dev"}, "no annotations of split 'dev'.*train, val"),
        ({"files": {}}, "no annotations of split 'train'.*none"),
        ({"files": {"train": None}}, "no annotations of split 'train'.*none"),
        ({"max_text_tokens": {"val": 3}}, "max_text_tokens has keys train and eval"),
    ],
)
def test_refused_before_training(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(root, **changes).setup("fit")


def test_batches_that_ranks_can_not_share(root: Path) -> None:
    data = pairs(root)
    data.trainer = SimpleNamespace(global_rank=0, world_size=4)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="multiple of the world size 4"):
        data.setup("fit")


def test_missing_data(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"vocab\.txt not found"):
        pairs(root, vocab=str(tmp_path)).setup("fit")
    with pytest.raises(DataNotFoundError, match=r"none\.json not found.*data_root=DIR"):
        pairs(root, files={"train": str(tmp_path / "none.json")}).setup("fit")
    with pytest.raises(DataNotFoundError, match=r"images/0\.png not found.*none of 12 images"):
        pairs(root, image_root=str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="no annotations of split 'test'"):
        pairs(root).setup("test")


def test_paths_that_leave_the_root(root: Path) -> None:
    entries = [{"image": str(root / "images" / "3.png"), "caption": "dog"}]
    files = with_entries(root, "outside", entries)
    with pytest.raises(DataCorruptError, match=r"outside\.json, entry 0: image .*allow_outside"):
        pairs(root, files=files, batch_size=1).setup("fit")
    (batch,) = epoch(pairs(root, files=files, batch_size=1, allow_outside=True))
    assert batch["images"].shape == (1, 3, 8, 8)


def test_captions_without_a_word(root: Path) -> None:
    """Left out of training, with one warning; an image without positives can't be evaluated."""
    texts = ["dog", "...", ["", "!"], [], "cat"]
    entries = [{"image": f"images/{i}.png", "caption": text} for i, text in enumerate(texts)]
    files = with_entries(root, "empty", entries)
    data = pairs(root, files=files, batch_size=2)
    with pytest.warns(
        UserWarning, match=r"^3 of 5 training entries .*empty\.json, entry 1: .*word"
    ):
        (batch,) = epoch(data)
    assert sorted(captions(data, batch)) == ["cat", "dog"]
    data = pairs(root, files={"test": files["train"]})
    with pytest.raises(DataCorruptError, match=r"empty\.json, entry 1: .*no positive"):
        data.setup("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [1]}, r"image_id is \[1\], expected a number or a text"),
        ({"hard": 1}, "hard is 1, expected a text"),
    ],
)
def test_values_of_another_kind(root: Path, change: dict, message: str) -> None:
    files = with_entries(root, "kinds", [{"image": "images/0.png", "caption": "dog"} | change])
    with (
        pytest.warns(UserWarning, match=message),
        pytest.raises(DataCorruptError, match="no training entry"),
    ):
        pairs(root, files=files, batch_size=1).setup("fit")


def test_drafts_of_jpegs(root: Path) -> None:
    """Decoded at an eighth where that leaves enough pixels; nothing changes unless asked for."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    Image.fromarray(noise).save(root / "images" / "large.jpg")
    Image.fromarray(noise).save(root / "images" / "large.png")
    entries = [{"image": f"images/large.{kind}", "caption": "dog"} for kind in ("jpg", "png")]
    files = with_entries(root, "large", entries)
    shapes = {
        None: (96, 128),
        12: (12, 16),
        13: (24, 32),
        24: (24, 32),
        48: (48, 64),
        49: (96, 128),
    }
    for draft, shape in shapes.items():
        source = pairs(root, files=files, draft=draft).source
        jpeg, png = (source.group(n)[0] for n in range(2))
        assert jpeg.shape == (*shape, 3)
        assert (png == noise).all()
        plain = np.asarray(Image.open(root / "images" / "large.jpg"))
        assert (jpeg.shape == plain.shape) == (shape == (96, 128))
        assert shape != (96, 128) or (jpeg == plain).all()
