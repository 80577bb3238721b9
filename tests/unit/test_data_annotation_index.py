"""Index files of annotations: made once, shared, refused when damaged or forged; files in turn."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from views_toy import plain_views

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text import annotations as module
from shared.data.image_text.annotations import Annotations, Reading, read_annotations
from shared.data.image_text.pairs import PairData
from shared.data.loading.feature_cache import checksum

PAIR = {"image": str, "caption": str | list[str]}
ENTRIES = [{"image": f"{n}.png", "caption": f"é word {n}"} for n in range(7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps(ENTRIES), encoding="utf-8")
    return tmp_path / "a.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The JSON files that are parsed."""
    found: list[Path] = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda p, how: (found.append(p), read(p, how))[1])
    return found


def judged(entry: dict[str, Any], file: Path) -> list[str] | None:
    return None if entry["image"] == "3.png" else [f"{file}/{entry['image']}"]


def indexed(path: Path, **changes: Any) -> Annotations:
    how = {"required": PAIR, "pictures": judged, "folder": path.parent / "index", "settings": "x"}
    return read_annotations(path, Reading(**how | changes))


def index_of(path: Path) -> Path:
    (index,) = (path.parent / "index").glob("*.safetensors")
    return index


def test_an_index_is_made_once_and_says_the_same(path: Path, reads: list[Path]) -> None:
    first = indexed(path)
    again = indexed(path)
    plain = indexed(path, folder=None)
    assert len(reads) == 2, "for the index, and without one"
    for entries in (first, again, plain):
        assert list(entries) == ENTRIES
        assert entries.bad.tolist() == [False] * 3 + [True] + [False] * 3
        assert entries.pictures == 6
        assert entries.where(5) == f"{path}, entry 5"
    copy = pickle.loads(pickle.dumps(again))
    assert list(copy) == ENTRIES
    assert len(pickle.dumps(again)) < 2000, "a copy maps the file again"
    assert {p.name for p in (path.parent / "index").iterdir()} == {".lock", index_of(path).name}


def test_the_memory_of_an_index_is_the_file_itself(path: Path) -> None:
    entries = indexed(path)
    assert len(entries) == 7
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(index_of(path)) in maps.read_text()


def test_another_content_or_setting_makes_another_index(path: Path, reads: list[Path]) -> None:
    indexed(path)
    indexed(path, settings="y")
    indexed(path, required={"image": str})
    status = path.stat()
    path.write_text(path.read_text().replace("word 1", "word 8"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # of the same size and time
    assert indexed(path)[1]["caption"] == "é word 8"
    assert len(reads) == len(list((path.parent / "index").glob("*.safetensors"))) == 4
    moved = path.rename(path.with_name("b.json"))
    assert indexed(moved).where(0) == f"{moved}, entry 0"
    assert len(reads) == 4, "the same content under another name"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "shape"])
def test_a_damaged_index_is_made_anew(path: Path, reads: list[Path], damage: str) -> None:
    indexed(path)
    index = index_of(path)
    content = bytearray(index.read_bytes())
    if damage == "flipped":
        content[-10] ^= 1
    arrays = load_file(index)
    index.write_bytes({"cut": content[:-5], "empty": b""}.get(damage, bytes(content)))
    if damage == "foreign":
        save_file({"other": np.arange(3)}, index)
    if damage == "shape":
        save_file(arrays | {"ends": arrays["ends"][:-1]}, index, {"sha256": "0"})
    with pytest.warns(UserWarning, match=r"safetensors: damaged.*made anew"):
        assert list(indexed(path)) == ENTRIES
    assert len(reads) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(indexed(path)) == ENTRIES
    assert len(reads) == 2


def forged(path: Path, rows: list[Any], ends: list[int] | None = None) -> Annotations:
    """Entries of an index that somebody wrote, with a right checksum."""
    indexed(path)
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    arrays = {
        "data": np.frombuffer(b"".join(texts), np.uint8),
        "ends": np.cumsum([*map(len, texts)]) if ends is None else np.array(ends),
        "bad": np.zeros(len(texts), bool),
        "pictures": np.array([len(rows)]),
    }
    save_file(arrays, index_of(path), {"sha256": checksum(arrays)})
    return indexed(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "is no object but 3"),
        ({"image": 5, "caption": ""}, "'image' is 5, expected str"),
        ({"image": "x"}, "has no 'caption'"),
        (b'{"image": "x", ', "no|Expecting"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_forged_rows_are_refused(path: Path, row: Any, message: str) -> None:
    entries = forged(path, [ENTRIES[0], row, ENTRIES[2]])
    assert [entries[0], entries[2]] == [ENTRIES[0], ENTRIES[2]]
    with pytest.raises(DataCorruptError, match=rf"safetensors: damaged, delete it.*{message}"):
        entries[1]


@pytest.mark.parametrize("ends", [[5, 2, 9], [-4, 10**15, 2**62], [0, 0, 0]])
def test_forged_places_reach_no_other_memory(path: Path, ends: list[int]) -> None:
    entries = forged(path, ENTRIES[:3], ends)
    for number in range(3):
        with pytest.raises(DataCorruptError, match="damaged, delete it"):
            entries[number]


def test_what_is_no_file_is_not_waited_for(path: Path, reads: list[Path]) -> None:
    indexed(path)
    index = index_of(path)
    index.unlink()
    os.mkfifo(index)
    with pytest.warns(UserWarning, match="made anew"):
        assert list(indexed(path)) == ENTRIES
    assert index.is_file()
    aim = path.with_name("aim")
    aim.write_bytes(b"mine")
    index.unlink()
    index.symlink_to(aim)
    with pytest.warns(UserWarning, match="made anew"):
        assert list(indexed(path)) == ENTRIES
    assert aim.read_bytes() == b"mine", "a link is replaced, not written through"


def test_a_folder_that_takes_no_files(path: Path) -> None:
    (path.parent / "index").write_text("a file")
    with pytest.warns(UserWarning, match="not kept for the next run"):
        assert list(indexed(path)) == ENTRIES
    with pytest.raises(DataNotFoundError, match=r"none\.json not found"):
        indexed(path.with_name("none.json"))


def test_an_unfinished_index_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert list(indexed(path)) == ENTRIES
    assert [p.name for p in (path.parent / "index").iterdir()] == [".lock"]


def test_bad_entries_are_named_before_an_index_is_kept(path: Path) -> None:
    path.write_text(json.dumps([*ENTRIES, {"image": "x"}]))
    with pytest.raises(DataCorruptError, match=r"a\.json, entry 7 has no 'caption'"):
        indexed(path)
    assert not list((path.parent / "index").glob("*.safetensors"))


SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from shared.data.image_text import annotations as module
read = module._read
def counted(path, how):
    with open(sys.argv[2], "a") as file: file.write("x")
    return read(path, how)
module._read = counted
how = module.Reading({"image": str}, folder=Path(sys.argv[1]).parent / "index")
assert len(module.read_annotations(sys.argv[1], how)) == 20000
"""


def test_several_processes_make_one_index(tmp_path: Path) -> None:
    path, count = tmp_path / "many.json", tmp_path / "count"
    path.write_text(json.dumps([{"image": f"{n}.png"} for n in range(20000)]))
    start = [sys.executable, "-c", SCRIPT, str(path), str(count)]
    for process in [subprocess.Popen(start) for _ in range(3)]:
        assert process.wait() == 0
    assert count.read_text() == "x"


# --- data modules ---


def pairs(root: Path, train: Any, **changes: Any) -> PairData:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", *map(str, range(9))]
    (root / "vocab.txt").write_text("\n".join(words))
    for number in range(7):
        Image.new("RGB", (8, 8), (30 * number,) * 3).save(root / f"{number}.png")
    arguments: dict[str, Any] = {
        "files": {"train": train},
        "image_root": str(root),
        "vocab": str(root),
        "augmentation": plain_views(8, 0.0, 1.0, {"op": "resize"}),
        "batch_size": 2,
        "val_split": None,
        "annotation_index": str(root / "index"),
    }
    return PairData(**arguments | changes)


def epoch(data: PairData, number: int = 0) -> list[dict[str, Any]]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.set_epoch(number)
    return list(loader)


def numbers_of(batches: list[dict[str, Any]]) -> list[int]:
    return [int(i) for batch in batches for i in batch["indices"]]


def test_training_from_an_index_is_training_without(path: Path, reads: list[Path]) -> None:
    changed = [*ENTRIES, {"image": "0.png", "caption": "..."}]
    path.write_text(json.dumps(changed))
    expected: list[dict[str, Any]] = []
    for changes in ({}, {"num_workers": 2}, {"annotation_index": None}):
        data = pairs(path.parent, str(path), **changes)
        with pytest.warns(UserWarning, match=r"1 of 8 training entries .* entry 7: it has no cap"):
            found = epoch(data, 1)
        assert len(set(numbers_of(found))) == 6
        assert len(data.source.images) == 7  # type: ignore[attr-defined]
        expected = expected or found
        for one, other in zip(found, expected, strict=True):
            assert all((one[key] == other[key]).all() for key in one)
    assert len(reads) == 2
    index_of(path)


def test_indexes_of_other_rules_are_others(path: Path) -> None:
    for changes in ({}, {"max_words": 3}, {"text_rules": "blip"}, {"batch_size": 3, "seed": 9}):
        epoch(pairs(path.parent, str(path), **changes))
    assert len(list((path.parent / "index").glob("*.safetensors"))) == 3


def test_a_forged_index_leads_out_of_no_folder(path: Path) -> None:
    data = pairs(path.parent, str(path))
    epoch(data)
    index = index_of(path)
    rows = [json.dumps(e | {"image": "../../secret.png"}).encode() for e in ENTRIES]
    arrays = {"data": np.frombuffer(b"".join(rows), np.uint8), "bad": np.zeros(7, bool)}
    arrays["ends"] = np.cumsum([*map(len, rows)])
    arrays["pictures"] = np.array([7])
    save_file(arrays, index, {"sha256": checksum(arrays)})
    with pytest.raises(DataCorruptError, match="outside of the image root"):
        epoch(pairs(path.parent, str(path)))


def test_files_in_turn(path: Path) -> None:
    """BLIP's rule for LAION: shard e mod n at epoch e, in sorted order, beside what always is."""
    folder = path.parent / "laion"
    folder.mkdir()
    groups = {"b": [3, 4, 5], "a": [0, 1], "c": [6, 2]}
    for name, own in groups.items():
        (folder / f"{name}.json").write_text(json.dumps([ENTRIES[n] for n in own]))
    data = pairs(path.parent, str(path), rotating=str(folder / "*.json"), batch_size=1)
    epochs = [numbers_of(epoch(data, number)) for number in range(4)]
    always, a, b, c = set(range(7)), {7, 8}, {9, 10, 11}, {12, 13}
    assert [len(set(drawn)) for drawn in epochs] == [9] * 4, "as many as the smallest file gives"
    assert set(epochs[0]) == set(epochs[3]) == always | a
    assert epochs[0] != epochs[3]
    assert set(epochs[1]) < always | b
    assert set(epochs[2]) == always | c
    rows = data.entries("train")
    assert [rows[i] for i in range(7, 14)] == [ENTRIES[n] for n in [0, 1, 3, 4, 5, 6, 2]]
    alone = pairs(path.parent, None, rotating=[str(folder / "*.json")], batch_size=1)
    assert [set(numbers_of(epoch(alone, e))) for e in (0, 2)] == [{0, 1}, {5, 6}]
    resumed = pairs(path.parent, str(path), rotating=str(folder / "*.json"), batch_size=1)
    resumed.setup("fit")
    loader = resumed.train_dataloader()
    loader.load_state_dict({"epoch": 1, "position": 4, "length": 9})
    assert numbers_of(list(loader)) == epochs[1][4:]


def test_files_in_turn_that_are_refused(path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"none/\*\.json: no file of annotations found"):
        epoch(pairs(path.parent, str(path), rotating=str(path.parent / "none/*.json")))
    other = path.with_name("other.json")
    other.write_text(json.dumps(ENTRIES[:2]))
    for changes in ({"subset": 3}, {"steps_per_epoch": 2}):
        with pytest.raises(ValueError, match="files in turn need subset and steps_per_epoch"):
            epoch(pairs(path.parent, str(path), rotating=str(other), **changes))
    with pytest.raises(ValueError, match="given twice"):
        epoch(pairs(path.parent, str(path), rotating=str(path)))
