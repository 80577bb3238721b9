"""Annotations: order, compact storage, every kind of damage, paths of images."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.annotations import read_annotations
from shared.data.readers.files import image_path

PAIR = {"image": str, "caption": str | list[str]}


def written(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def test_files_one_after_another(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", [{"n": 0}, {"n": 1}])
    two = written(tmp_path / "two.jsonl", '{"n": 2}\n{"n": 3}\n')
    entries = read_annotations([one, str(two)])
    assert [entry["n"] for entry in entries] == [0, 1, 2, 3]
    assert len(entries) == 4
    assert [entries[i]["n"] for i in range(4)] == [0, 1, 2, 3]
    assert entries[-1] == {"n": 3}
    assert entries.where(1) == f"{one}, entry 1"
    assert entries.where(2) == f"{two}, line 1"
    with pytest.raises(IndexError):
        entries[4]


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a"\u20289é')
)
VALUES = LEAVES | st.lists(LEAVES) | st.dictionaries(st.sampled_from("a犬"), st.lists(LEAVES))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), min_size=1, max_size=5))
def test_entries_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, content: list[dict]
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.json"
    path.write_text(json.dumps(content, ensure_ascii=False))
    entries = read_annotations(path)
    assert list(entries) == content
    assert [entries[i] for i in range(len(content))] == content
    assert list(pickle.loads(pickle.dumps(entries))) == content


def test_each_access_gives_a_new_entry(tmp_path: Path) -> None:
    entries = read_annotations(written(tmp_path / "a.jsonl", '{"caption": ["é \u2028 犬"]}\r\n'))
    entries[0]["caption"].append("y")
    assert list(entries) == [{"caption": ["é \u2028 犬"]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            '[{"image": "x", "caption": ""}, {"im',
            r"a\.json: no JSON list.*cut off.* at byte 32",
        ),
        (
            "a.json",
            '[{"image": "x", "caption": ""} {',
            r"a\.json: no JSON.*no comma between entries at byte 31",
        ),
        (
            "a.json",
            '[{"image": "x", "caption": ""},]',
            r"Expecting value.* at byte 31",
        ),
        (
            "a.json",
            '[{"image": "x", "caption": ""}',
            r"a\.json: no JSON.*cut off at byte 30",
        ),
        (
            "a.json",
            '[{"image": "x", "caption": ""}] 3',
            r"something follows the list at byte 32",
        ),
        ("a.json", "[" * 100_000, r"a\.json: no JSON.*nested too deep"),
        ("a.json", "", r"a\.json: no JSON.*does not begin with a bracket"),
        (
            "a.json",
            {"image": "x"},
            r"a\.json: no JSON list.* not begin with a bracket",
        ),
        ("a.json", [], r"a\.json: no entries"),
        ("a.jsonl", "", r"a\.jsonl: no entries"),
        ("a.jsonl", '{"image": "x", "caption": ""}\n{"im', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", "\n", r"a\.jsonl, line 1: no JSON"),
        ("a.json", [{"image": "x", "caption": ""}, 3], r"a\.json, entry 1 is no object but 3"),
        ("a.json", [{"image": "x"}], r"a\.json, entry 0 has no 'caption'; its keys: image"),
        ("a.json", [{}], r"entry 0 has no 'image'; its keys: none"),
        ("a.json", [{"image": 5, "caption": ""}], r"entry 0: 'image' is 5, expected str$"),
        ("a.json", [{"image": "x", "caption": ["a", 1]}], r"\['a', 1\], expected str \| list\[str"),
        ("a.json", [{"image": "x", "caption": None}], r"'caption' is None"),
        ("a.json", [{"image": "x", "caption": ["word"] * 99}, {}], r"entry 1 has no 'image'"),
        ("a.json", '[{"image": "x", "caption": "\\ud83d"}]', r"entry 0: half a character"),
    ],
)
def test_damage(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataCorruptError, match=message):
        read_annotations(written(tmp_path / name, content), PAIR)


def test_long_values_are_shortened_and_true_is_no_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"image": ["x" * 1000], "caption": ""}])
    with pytest.raises(DataCorruptError) as caught:
        read_annotations(path, PAIR)
    assert len(str(caught.value)) < 250
    path = written(tmp_path / "a.json", [{"label": True}])
    with pytest.raises(DataCorruptError, match="'label' is True, expected int"):
        read_annotations(path, {"label": int})
    assert len(read_annotations(path, {"label": bool})) == 1


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"none\.json not found.*data_root=DIR"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no annotation file"):
        read_annotations([])
    path = written(tmp_path / "a.json", [{}])
    with pytest.raises(ValueError, match="given twice"):
        read_annotations([path, path])
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataCorruptError, match=r"binary\.json: no JSON list of entries"):
        read_annotations(tmp_path / "binary.json")


def test_image_paths() -> None:
    assert image_path("/data", "train/a.jpg", False) == "/data/train/a.jpg"
    assert image_path("/data", "a..b/../c.jpg", False) == "/data/a..b/../c.jpg"
    for name in ("/etc/a.jpg", "../a.jpg", "x/../../a.jpg", ".."):
        with pytest.raises(DataCorruptError, match=r"outside of the image root /data.*allow_outs"):
            image_path("/data", name, False)
    assert image_path("/data", "/elsewhere/a.jpg", True) == "/elsewhere/a.jpg"
    assert image_path("/data", "../a.jpg", True) == "/data/../a.jpg"
