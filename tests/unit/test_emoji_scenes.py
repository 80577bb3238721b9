"""Scenes of drawings on photographs: on made-up ones, and once the real ones with counts pinned."""

import hashlib
import io
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emoji_toy import made_up, read
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.miniatures.detection import run_lengths
from benchmarks.miniatures.emoji import packages
from benchmarks.miniatures.emoji import scenes as module
from benchmarks.miniatures.emoji.packages import PHOTOGRAPHS, grounds, of_split, photographs
from benchmarks.miniatures.emoji.scenes import (
    LONGEST_SIDE,
    Scene,
    Studio,
    coco_instances,
    draw,
    from_left,
    listed,
    make_scenes,
    masks,
    random_contents,
    read_scenes,
    scene_concepts,
    scenes,
)
from shared.data.errors import DataCorruptError, DataNotFoundError


def toy() -> Studio:
    """Drawings are opaque in the middle, photographs of one colour each, the first too narrow."""
    drawn = made_up()
    drawn.concepts[9].aliases = ["other name"]
    for pictures in drawn.pictures.values():
        pictures[..., 3] = 0
        pictures[:, 8:60, 20:50, 3] = 255
    shapes = [(80, 300), (120, 150), (96, 96), (200, 130)]
    return Studio(
        drawn,
        {p.id: np.full((*shapes[i % 4], 3), 20 * i, np.uint8) for i, p in enumerate(PHOTOGRAPHS)},
    )


STUDIO = toy()
PINNED = (
    3_000_000,
    "flower",
    (42, 12, 107),
    [
        (9, "fluent", 20, 23.83, (59, 12, 18, 22)),
        (13, "fluent", 25, -15.15, (3, 34, 20, 27)),
    ],
)


@pytest.fixture
def made_of() -> Studio:
    return toy()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["train", "val", "test"]),
    st.lists(st.sampled_from(range(1, 30, 2)), max_size=4),
    st.integers(0, 99),
)
def test_objects_are_whole_tight_and_apart(split: str, contents: list[int], seed: int) -> None:
    (scene,) = make_scenes(STUDIO, split, [contents], seed, "any")
    assert [thing.concept for thing in scene.objects] == contents
    found = masks(STUDIO, scene)
    boxes = np.zeros_like(found)
    for box, mask, thing in zip(boxes, found, scene.objects, strict=True):
        x, y, width, height = thing.box
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= scene.size
        box[y : y + height, x : x + width] = True
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        extent = (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert thing.box == extent, "as far as the drawing goes"
        assert LONGEST_SIDE[0] <= thing.longest <= LONGEST_SIDE[1]
        assert max(width, height) >= 0.8 * thing.longest
        assert abs(thing.rotation) <= 30
        assert thing.rendering in of_split(split)
        assert STUDIO.drawn.present[thing.rendering][thing.concept]
    assert (boxes.sum(0) <= 1).all()
    left, top, side = scene.crop
    height, width = STUDIO.photographs[scene.ground].shape[:2]
    assert min(scene.size, height, width) <= side
    assert left + side <= width
    assert top + side <= height
    assert scene.ground in grounds(split)


def test_a_picture_is_its_ground_and_its_objects(made_of: Studio) -> None:
    for pictures in made_of.drawn.pictures.values():
        pictures[..., :3] = [250, 10, 130]
    (scene,) = make_scenes(made_of, "train", [[9, 13]], 3, "any")
    picture = draw(made_of, scene)
    assert picture.shape == (96, 96, 3)
    boxes = np.zeros((96, 96), bool)
    for x, y, width, height in (thing.box for thing in scene.objects):
        boxes[y : y + height, x : x + width] = True
        centre = picture[y + height // 2, x + width // 2]
        np.testing.assert_array_equal(centre, [250, 10, 130])
    assert (picture[~boxes] == made_of.photographs[scene.ground][0, 0]).all()
    assert (picture[boxes] != made_of.photographs[scene.ground][0, 0]).any()


def test_the_ground_is_the_crop(made_of: Studio) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 130, 3)).astype(np.uint8)
    made_of.photographs["grass"] = picture
    scene = Scene(1, 96, "grass", (20, 70, 96), ())
    np.testing.assert_array_equal(draw(made_of, scene), picture[70:166, 20:116])


def test_scenes_depend_on_seed_name_and_number_alone() -> None:
    contents = [[9, 11], [13], [15, 9, 17], [27]]
    four = make_scenes(STUDIO, "train", contents, 0, "any")
    assert make_scenes(STUDIO, "train", contents[:2], 0, "any") == four[:2], "can be extended"
    others = [[1, 3, 5], [13], [15, 9, 17], [27]]
    assert make_scenes(STUDIO, "train", others, 0, "any")[1:] == four[1:]
    for changed in (
        make_scenes(STUDIO, "train", contents, 1, "any"),
        make_scenes(STUDIO, "train", contents, 0, "other"),
    ):
        assert all(a.objects != b.objects for a, b in zip(four, changed, strict=True))
    assert [scene.id for scene in four] == [1_000_000, 1_000_001, 1_000_002, 1_000_003]


def test_records_are_pinned() -> None:
    """On any machine, as far as Pillow scales and turns alike."""
    (scene,) = make_scenes(STUDIO, "test", [[9, 13]], 0, "pinned")
    assert (scene.id, scene.ground, scene.crop) == PINNED[:3]
    things = [(t.concept, t.rendering, t.longest, t.rotation, t.box) for t in scene.objects]
    assert things == PINNED[3]


def test_random_contents() -> None:
    contents = random_contents(range(10), 300, 0, "any")
    assert Counter(map(len, contents)).keys() == {2, 3, 4}
    assert all(len(set(things)) == len(things) for things in contents)
    assert {thing for things in contents for thing in things} == set(range(10))
    assert random_contents(range(10), 7, 0, "any") == contents[:7]
    assert random_contents(range(10), 7, 0, "other") != contents[:7]
    assert {len(c) for c in random_contents(range(10), 50, 0, "any", 1, 2)} == {1, 2}


def test_impossible_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no rendering of val draws concept 2"):
        make_scenes(STUDIO, "val", [[2]], 0, "any")
    monkeypatch.setattr(module, "LAYOUTS", 20)
    for contents, sides in (([1, 2, 3], (90, 96)), ([1], (200, 200))):
        message = rf"scene 3000000: {len(contents)} objects of .* px find no place in 96 px"
        with pytest.raises(ValueError, match=message):
            make_scenes(STUDIO, "test", [contents], 0, "any", sides)


def test_scene_concepts(made_of: Studio) -> None:
    made_of.drawn.concepts[9].near, made_of.drawn.concepts[11].near = [11], [9]
    made_of.drawn.present["noto1"][13] = False
    chosen = scene_concepts(made_of.drawn, 0, 9)
    assert chosen == sorted(chosen)
    assert len({9, 11} & set(chosen)) == 1
    assert set(chosen) | {9, 11} == {1, 3, 5, 7, 9, 11, 15, 17, 27, 29}
    assert scene_concepts(made_of.drawn, 0, 4) != scene_concepts(made_of.drawn, 1, 4)
    with pytest.raises(ValueError, match="10 concepts asked for scenes, but only 9 are fit"):
        scene_concepts(made_of.drawn, 0, 10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_run_lengths(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    runs = run_lengths(mask)
    assert runs["size"] == [height, width]
    assert all(length > 0 for length in runs["counts"][1:])
    values = np.arange(len(runs["counts"])) % 2 == 1
    decoded = np.repeat(values, runs["counts"]).reshape(width, height).T
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog"], "a dog"),
        (["apple", "bus"], "an apple and a bus"),
        (["cherries", "Owl", "T-Rex", "glass"], "cherries, an Owl, a T-Rex and a glass"),
    ],
)
def test_listed(names: list[str], expected: str) -> None:
    assert listed(names) == expected


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "studio", lambda: STUDIO)
        record = scenes(root, train=20, val=3, test=4, classes=9)
        assert scenes(root, train=20, val=3, test=4, classes=9) == record, "once"
    assert record["chelsea"]["licence"] == "CC0-1.0"
    return root


def test_build(built: Path) -> None:
    tmp_path, made_of = built, STUDIO
    label = {c.id: c.label for c in made_of.drawn.concepts}
    for split, count in (("train", 20), ("val", 3), ("test", 4)):
        made = read_scenes(tmp_path, split)
        contents = [[thing.concept for thing in scene.objects] for scene in made]
        assert make_scenes(made_of, split, contents, 0, "scenes") == made
        coco = read(tmp_path, f"instances_{split}")
        assert coco == coco_instances(made_of, made, scene_concepts(made_of.drawn, 0, 9))
        assert [c["id"] for c in coco["categories"]] == list(range(1, 10))
        names = {c["id"]: c["name"] for c in coco["categories"]}
        things = [(s.id, thing) for s in made for thing in s.objects]
        for annotation, (image, thing) in zip(coco["annotations"], things, strict=True):
            assert annotation["image_id"] == image
            assert names[annotation["category_id"]] == label[thing.concept]
            assert annotation["bbox"] == list(thing.box)
            assert annotation["area"] == sum(annotation["segmentation"]["counts"][1::2])
        files = sorted(p.name for p in (tmp_path / "scenes" / split).iterdir())
        assert files == [image["file_name"] for image in coco["images"]]
        assert len(files) == count
        assert len(files[0]) == 12 + len(".png")
        with Image.open(tmp_path / "scenes" / split / files[-1]) as image:
            np.testing.assert_array_equal(np.asarray(image), draw(made_of, made[-1]))
    told = (tmp_path / "ATTRIBUTION.md").read_text()
    assert all(f"`{p.id}`" in told and p.licence in told for p in PHOTOGRAPHS)


def test_texts_of_the_build(built: Path) -> None:
    tmp_path = built
    label = {c.id: c.label for c in STUDIO.drawn.concepts}
    made = read_scenes(tmp_path, "train")
    every = set()
    for item, scene in zip(read(tmp_path, "captions_train"), made, strict=True):
        assert item["image"] == f"scenes/train/{scene.id:012d}.png"
        known = {label[t.concept] for t in scene.objects}
        known |= {"other name"} if label[9] in known else set()
        for text in item["caption"]:
            told = text.replace(" and ", ", ").split(", ")
            assert 1 <= len(told) <= len(scene.objects)
            assert {name.split(" ", 1)[1] for name in told} <= known
            every.add(len(told) < len(scene.objects))
    assert every == {True, False}, "some or all objects"
    flat = read(tmp_path, "coco_karpathy_train")
    first: dict[frozenset[int], int] = {}  # scenes of the same concepts count as one image
    ids = [first.setdefault(frozenset(t.concept for t in s.objects), s.id) for s in made]
    assert [item["image_id"] for item in flat] == [own for own in ids for _ in range(5)]
    assert len(set(ids)) < len(made)
    references = read(tmp_path, "coco_karpathy_val")
    truth = read(tmp_path, "coco_karpathy_val_gt")
    made = read_scenes(tmp_path, "val")
    assert truth["images"] == [{"id": scene.id} for scene in made]
    assert [a["caption"] for a in truth["annotations"]] == [
        text for item in references for text in item["caption"]
    ]
    assert [a["image_id"] for a in truth["annotations"]] == [s.id for s in made for _ in range(5)]
    for item, scene in zip(references, made, strict=True):
        assert int(Path(item["image"]).stem.split("_")[-1]) == scene.id
        ordered = [label[thing.concept] for thing in from_left(scene)]
        assert item["caption"][2] == f"from left to right {listed(ordered)}"
        centres = [thing.box[0] + thing.box[2] / 2 for thing in from_left(scene)]
        assert centres == sorted(centres)


def test_records_are_checked(built: Path, tmp_path: Path) -> None:
    with pytest.raises(DataCorruptError, match="seed=0 instead of 1"):
        scenes(built, 1, train=20, val=3, test=4, classes=9)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/scene_records.json").write_text('{"train": [{"id": 1}]}')
    with pytest.raises(
        DataCorruptError, match=r"scene_records.json: damaged; delete.*KeyError: 'objects'"
    ):
        read_scenes(tmp_path, "train")


def test_grounds_of_the_test_are_its_own() -> None:
    assert set(grounds("test")) == {"coffee", "gravel", "rocket", "flower"}
    assert grounds("train") == grounds("val")
    assert set(grounds("train")).isdisjoint(grounds("test"))
    assert len(grounds("train")) == 6


def test_photographs_of_the_wheel_and_of_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    Image.new("L", (4, 3), 7).save(content, "png")
    archive = tmp_path / packages.WHEEL.archive
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("skimage/data/brick.png", content.getvalue())
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENFOLD_SOURCES", str(tmp_path))
    with pytest.raises(DataCorruptError, match=r"scikit_image-0.26.0.*sha256 .*, not 74aa55"):
        photographs()
    known = [p for p in PHOTOGRAPHS if p.id in ("brick", "flower")]
    monkeypatch.setattr(packages, "PHOTOGRAPHS", known)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(packages, "WHEEL", packages.WHEEL._replace(sha256=digest))
    with pytest.raises(DataCorruptError, match=r"skimage/data/brick.png: sha256 .*, not 7966ca"):
        photographs()
    known[0] = replace(known[0], sha256=hashlib.sha256(content.getvalue()).hexdigest())
    found = photographs()
    assert found["brick"].tolist() == [[[7] * 3] * 4] * 3
    assert found["flower"].shape == (427, 640, 3)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(DataNotFoundError, match="pip install scikit-learn"):
        photographs()


@pytest.mark.slow
def test_real_scenes(tmp_path: Path) -> None:
    """The pinned packages give these counts; needs npm and pip or a filled cache."""
    scenes(tmp_path)
    for split, images, annotations in (
        ("train", 6000, 18057),
        ("val", 600, 1788),
        ("test", 600, 1804),
    ):
        coco = read(tmp_path, f"instances_{split}")
        assert (len(coco["images"]), len(coco["annotations"])) == (images, annotations)
        assert len(coco["categories"]) == 120
        assert len(list((tmp_path / "scenes" / split).iterdir())) == images
    counts = Counter(a["category_id"] for a in coco["annotations"])
    assert len(counts) == 120
    assert [len(read(tmp_path, f"coco_karpathy_{s}")) for s in ("train", "val", "test")] == [
        *(30000, 600, 600)
    ]
