"""Referring expressions with REFER's boxes, and pickles that must not run anything."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from views_toy import plain_views

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.referring import References, ReferringData
from shared.data.readers.plain_pickle import read_plain_pickle

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "square", "disc"]
REFS = [
    {"ref_id": 7, "ann_id": 70, "image_id": 1, "split": "val", "sentences": [{"sent": "a disc"}]},
    {"ref_id": 8, "ann_id": 80, "image_id": 2, "split": "testA"},
    {"ref_id": 9, "ann_id": 90, "image_id": 2, "split": "testB"},
]
INSTANCES = {
    "images": [{"id": 1, "height": 20, "width": 30}, {"id": 2, "height": 25, "width": 10}],
    "annotations": [
        {"id": 70, "image_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 80, "image_id": 2, "bbox": [2.5, 2, 3, 4]},
        {"id": 90, "image_id": 2, "bbox": [0, 0, 5, 5]},
    ],
}
DETS = {"1": [[1, 2, 3, 4], [5, 6, 7, 8, 0.9]], "2": [[0, 0, 9.5, 9]]}
ENTRIES = [
    {"image": "one/p1.png", "text": "A red disc!", "ref_id": 7},
    {"image": "two/p2.png", "text": "green", "ref_id": 8},
    {"image": "two/p2.png", "text": "a  square", "ref_id": 9},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, size in [("one/p1.png", (30, 20)), ("two/p2.png", (10, 25))]:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", size, "red").save(path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "refs.p").write_bytes(pickle.dumps(REFS, protocol=0))
    write(tmp_path / "instances.json", INSTANCES)
    write(tmp_path / "dets.json", DETS)
    write(tmp_path / "train.json", [*ENTRIES, ENTRIES[0]])
    write(tmp_path / "val.json", ENTRIES[:1])
    write(tmp_path / "test.json", ENTRIES[1:])
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def data(root: Path, **changes: Any) -> ReferringData:
    arguments: dict[str, Any] = {
        "refs": f"{root}/refs.p",
        "instances": f"{root}/instances.json",
        "proposals": f"{root}/dets.json",
        "files": {
            "train": f"{root}/train.json",
            "val": f"{root}/val.json",
            "test": [f"{root}/val.json", f"{root}/test.json"],
        },
        "image_root": f"{root}/images",
        "vocab": f"{root}/vocab.txt",
        "augmentation": plain_views(8, 0.5, 0.25, {"op": "resize"}, {"op": "flip"}),
        "batch_size": 4,
        "eval_batch_size": 8,
    }
    return ReferringData(**arguments | changes)


def references(root: Path) -> References:
    return References(root / "refs.p", root / "instances.json", root / "dets.json")


def test_an_evaluation_batch_has_texts_and_boxes(root: Path) -> None:
    module = data(root)
    module.setup("test")
    (batch,) = module.test_dataloader()
    assert batch["images"].shape == (3, 3, 8, 8)
    assert batch["indices"].tolist() == [0, 1, 2]
    assert batch["input_ids"].tolist() == [[2, 5, 6, 9], [2, 7, 0, 0], [2, 5, 8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    first, second, third = batch["image_ids"].tolist()
    assert first != second == third
    assert batch["ref_ids"].tolist() == [7, 8, 9]
    assert batch["boxes"].tolist() == [[1, 2, 3, 4], [2.5, 2, 3, 4], [0, 0, 5, 5]]
    assert batch["sizes"].tolist() == [[20, 30], [25, 10], [25, 10]]
    assert [boxes.tolist() for boxes in batch["proposals"]] == [
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[0, 0, 9.5, 9]],
        [[0, 0, 9.5, 9]],
    ]
    assert batch["splits"] == ["val", "testA", "testB"]


def test_training_needs_no_boxes(root: Path) -> None:
    for name in ("refs.p", "instances.json", "dets.json"):
        (root / name).unlink()
    module = data(root, val_split=None)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert batch.keys() == {"images", "indices", "input_ids", "attention_mask", "image_ids"}
    found = dict(zip(batch["indices"].tolist(), batch["image_ids"].tolist(), strict=True))
    assert found[0] == found[3] != found[1] == found[2], "an identity is a file name"


def test_training_leaves_out_texts_without_a_word(root: Path) -> None:
    write(root / "train.json", [*ENTRIES, {"image": "one/p1.png", "text": " ?! "}])
    module = data(root, batch_size=3)
    with pytest.warns(
        UserWarning, match=r"1 of 4 training entries .* entry 3: no word in its text"
    ):
        module.setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "..."}, "no word in its text '...'"),
        ({"ref_id": "7"}, "ref_id is '7', expected an integer"),
        ({"ref_id": None}, "ref_id is None"),
        ({"ref_id": 700}, r"ref_id 700 is not in .*refs\.p"),
    ],
)
def test_entries_that_cannot_be_evaluated_are_named(root, change, message) -> None:
    write(root / "val.json", [ENTRIES[0], ENTRIES[0] | change])
    with pytest.raises(DataCorruptError, match=rf"val\.json, entry 1: {message}"):
        data(root).setup("validate")


def test_what_a_reference_lacks_is_named(root: Path) -> None:
    def refused(ref_id: int, message: str) -> None:
        with pytest.raises(DataCorruptError, match=message):
            references(root)[ref_id]

    (root / "refs.p").write_bytes(
        pickle.dumps([*REFS, {"ref_id": 5, "image_id": 1}, REFS[0] | {"ref_id": 6, "ann_id": 1}])
    )
    refused(5, r"ref_id 5 in .*refs\.p lacks ann_id, split")
    refused(6, r"ref_id 6: annotation 1 has no bbox in .*instances\.json")
    write(root / "instances.json", INSTANCES | {"images": INSTANCES["images"][:1]})
    refused(8, r"ref_id 8: image 2 with height and width is not in .*instances\.json")
    write(root / "instances.json", INSTANCES)
    for boxes in ({}, {"2": []}):
        write(root / "dets.json", boxes)
        refused(9, r"ref_id 9: proposals of image 2: .*dets\.json has none")
    for box in ([1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("nan")], 5):
        write(root / "dets.json", {"2": [[1, 2, 3, 4], box]})
        refused(9, r"ref_id 9: proposals of image 2: .*dets\.json is no list of \[x, y,")


def test_files_of_another_form_are_named(root: Path) -> None:
    def refused(name: str, content: Any, message: str) -> None:
        before = (root / name).read_bytes()
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            write(root / name, content)
        with pytest.raises(DataCorruptError, match=message):
            references(root)
        (root / name).write_bytes(before)

    refused("refs.p", pickle.dumps({"a": 1}), r"refs\.p: expected a list, got dict")
    refused(
        "refs.p",
        pickle.dumps([{"id": 1}]),
        r"entry 0: ref_id is None, expected",
    )
    refused("instances.json", [], r"instances\.json: expected a JSON object")
    refused("instances.json", {"images": []}, r"annotations: expected a list, got NoneType")
    refused("instances.json", b'{"images": [', r"instances\.json: no JSON, perhaps cut off")
    refused("dets.json", [1], r"dets\.json: expected an object, image id -> boxes")
    (root / "dets.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"dets\.json not found"):
        references(root)


PLAIN = {"a": [1, 2.5, None, True, "é", (b"x", -(2**70))], "d": {}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = PLAIN if protocol > 2 else PLAIN | {"a": [1, 2.5, "é"]}
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_plain_pickle(tmp_path / "p") == value


def test_texts_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'testA \\xe9'\np3\nsaI7L\na.")
    with pytest.raises(DataCorruptError):
        read_plain_pickle(tmp_path / "p")  # damaged: I7L is no number
    (tmp_path / "p").write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'testA \\xe9'\np3\nsaL7L\na.")
    assert read_plain_pickle(tmp_path / "p") == [{"split": "testA é"}, 7]


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        function, *arguments = self.call
        return function, tuple(arguments)


def test_what_a_pickle_asks_for_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "p", tmp_path / "boom"
    calls: list[tuple[Any, ...]] = [
        (os.system, f"touch {mark}"),
        (eval, f"open({str(mark)!r}, 'w')"),
        (getattr, "text", "upper"),
        (np.array, [1, 2]),
        (Path, "x"),
    ]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for call in calls:
            path.write_bytes(pickle.dumps([{"ref_id": Bomb(*call)}], protocol=protocol))
            with pytest.raises(DataCorruptError, match="refused, nothing in it was executed"):
                read_plain_pickle(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps([Bomb(os.system, "true")]))
    with pytest.raises(DataCorruptError, match=r"it asks for (posix|nt)\.system"):
        read_plain_pickle(path)


def test_damaged_and_missing_pickles(tmp_path: Path) -> None:
    whole = pickle.dumps(REFS)
    for content in (b"", b"no pickle", whole[: len(whole) // 2]):
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(DataCorruptError, match="is refused"):
            read_plain_pickle(tmp_path / "p")
    with pytest.raises(DataNotFoundError, match="not found"):
        read_plain_pickle(tmp_path / "absent")
