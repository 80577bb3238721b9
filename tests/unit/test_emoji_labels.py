"""Labelled emoji sets: on made-up drawings, and once the real ones with their counts pinned."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emoji_toy import made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.miniatures.emoji import subgroup_labels
from benchmarks.miniatures.emoji.packages import of_split
from benchmarks.miniatures.emoji.render import Renderings, renderings
from benchmarks.miniatures.emoji.subgroup_labels import (
    class_subgroups,
    labelled_pictures,
    long_tail_counts,
    long_tail_rows,
    subgroups,
)
from shared.data.errors import DataCorruptError


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Renderings:
    made = made_up()
    monkeypatch.setattr(subgroup_labels, "renderings", lambda: made)
    return made


def test_classes_are_large_subgroups_without_symbols(drawn: Renderings) -> None:
    assert class_subgroups(drawn.concepts) == ("bird", "tool")
    assert class_subgroups(drawn.concepts[:17]) == ("tool",), "seven birds are too few"


def test_pictures_of_a_split(drawn: Renderings) -> None:
    train = labelled_pictures(drawn, "train", ("bird", "tool"))
    assert np.bincount(train.labels).tolist() == [8 * 6, 10 * 6 - 9]
    assert len(set(train.paths)) == len(train.paths)
    assert train.paths[0].startswith("bird/")
    assert (np.diff(train.labels) >= 0).all()
    test = labelled_pictures(drawn, "test", ("bird", "tool"))
    assert {Path(path).name.split("_")[0] for path in test.paths} == {"fluent"}


def test_a_row_is_its_concepts_drawing_on_white(drawn: Renderings) -> None:
    for name in of_split("train"):
        drawn.pictures[name][:] = 0
    drawn.pictures["openmoji"][4] = [10, 20, 30, 255]
    train = labelled_pictures(drawn, "train", ("bird", "tool"))
    row = train.paths.index("tool/openmoji_0004.png")
    assert (train.images[row] == [10, 20, 30]).all()
    assert (np.delete(train.images, row, 0) == 255).all()


def test_build_writes_the_same_set_in_every_form_once(
    drawn: Renderings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = subgroups(tmp_path)
    assert record["fluent"]["licence"] == "MIT"
    for name in ("emoji", "emoji_lt"):
        for split in ("train", "val", "test"):
            content = np.load(tmp_path / f"{name}_{split}.npz")
            assert content["class_names"].tolist() == ["bird", "tool"]
            lines = (tmp_path / f"{name}_{split}.txt").read_text().splitlines()
            assert lines == [
                f"{path} {label}"
                for path, label in zip(content["paths"], content["labels"], strict=True)
            ]
            for i in (0, -1):
                with Image.open(tmp_path / content["paths"][i]) as image:
                    np.testing.assert_array_equal(np.asarray(image), content["images"][i])
    linked = {
        p.relative_to(tmp_path / "emoji_lt/train").as_posix()
        for p in (tmp_path / "emoji_lt/train").rglob("*.png")
    }
    listed = np.load(tmp_path / "emoji_lt_train.npz")["paths"]
    assert linked == {path.removeprefix("images/train/") for path in listed}
    assert (tmp_path / "ATTRIBUTION.md").read_text() == "Drawn by chance.\n"
    assert "emoji_lt_train.npz" in record["emoji-subgroups"]["files"]
    monkeypatch.delattr(subgroup_labels, "renderings")
    assert subgroups(tmp_path) == record
    (tmp_path / "emoji_lt_val.txt").write_text("")
    with pytest.raises(DataCorruptError, match=r"emoji_lt_val.txt: damaged; delete"):
        subgroups(tmp_path)


def test_a_class_without_validation_picture_is_an_error(drawn: Renderings, tmp_path: Path) -> None:
    drawn.present["etwo"][10:18] = False
    with pytest.raises(DataCorruptError, match="emoji val: no picture of bird"):
        subgroups(tmp_path)
    assert not (tmp_path / "manifests").exists()


def test_long_tail_profile() -> None:
    natural = np.full(55, 500)
    counts = long_tail_counts(natural)
    assert (counts[0], counts[-1]) == (200, 3)
    assert (np.diff(counts) <= 0).all()
    expected = [max(3, int(200 * (3 / 200) ** (r / 54))) for r in range(1, 54)]
    assert counts[1:-1].tolist() == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=60))
def test_long_tail_takes_no_more_than_there_is(natural: list[int]) -> None:
    there = np.array(natural)
    counts = long_tail_counts(there)
    assert (counts <= there).all()
    assert (counts >= np.minimum(there, 3)).all()
    order = np.argsort(-there, kind="stable")
    assert (np.diff(counts[order]) <= 0).all(), "the larger class keeps the more"


def test_long_tail_rows() -> None:
    labels = np.repeat([0, 1, 2], [250, 100, 40])
    rows = long_tail_rows(labels)
    assert np.bincount(labels[rows]).tolist() == long_tail_counts(np.array([250, 100, 40])).tolist()
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, long_tail_rows(labels))


@pytest.mark.slow
def test_real_sets(tmp_path: Path) -> None:
    """The pinned packages give these counts; needs npm or a filled cache."""
    drawn = renderings()
    concepts = drawn.concepts
    assert len(concepts) == 1301
    assert {name: int(there.sum()) for name, there in drawn.present.items()} == {
        **{"noto": 1301, "twemoji": 1301, "openmoji": 1301, "fluent": 1301},
        **{"noto1": 976, "eone1": 812, "fx": 438, "etwo": 969},
    }
    assert Counter(c.group for c in concepts) == {
        **{"objects": 262, "travel-places": 194, "people-body": 170, "smileys-emotion": 168},
        **{"animals-nature": 158, "symbols": 134, "food-drink": 130, "activities": 85},
    }
    assert len({c.subgroup for c in concepts}) == 91
    by_label = {c.label: c for c in concepts}
    assert by_label["cat face"].id in by_label["grinning cat"].near

    subgroups(tmp_path)
    sizes = {}
    for name in ("emoji", "emoji_lt"):
        for split in ("train", "val", "test"):
            content = np.load(tmp_path / f"{name}_{split}.npz")
            counts = np.bincount(content["labels"], minlength=55)
            sizes[name, split] = (len(content["labels"]), int(counts.max()), int(counts.min()))
            assert content["images"].shape == (len(content["labels"]), 32, 32, 3)
            assert len(content["class_names"]) == 55
    for name in ("emoji", "emoji_lt"):
        assert sizes[name, "val"] == (741, 46, 3)
        assert sizes[name, "test"] == (1034, 66, 8)
    assert sizes["emoji", "train"] == (4845, 299, 33)
    assert sizes["emoji_lt", "train"] == (2610, 200, 3)
    counts = np.bincount(np.load(tmp_path / "emoji_lt_train.npz")["labels"])
    assert [(counts > 100).sum(), (counts < 20).sum()] == [9, 25]
