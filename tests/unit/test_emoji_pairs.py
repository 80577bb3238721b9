"""Emoji with captions: on made-up drawings, and once the real ones with their counts pinned."""

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
from emoji_toy import NAMES, made_up, read
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.miniatures.emoji import pairs as module
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import of_split
from benchmarks.miniatures.emoji.pairs import (
    SENTENCE_WORDS,
    SPECIAL_TOKENS,
    apart,
    common_concepts,
    evaluation_items,
    everyday_concepts,
    held_out_alias,
    pairs,
    pixel_baseline,
    synonyms,
    training_captions,
    training_items,
    vocabulary,
    with_noise,
    words,
)
from benchmarks.miniatures.emoji.render import Renderings, on_ground, renderings
from shared.data.text.cleaning import clean_caption
from shared.data.text.wordpiece import WordPiece

CONF = Path(__file__).parents[2] / "conf/data/emoji_pairs.yaml"
PHRASES = st.lists(st.sampled_from(["red", "car", "old-car", "Big", "fox"]), min_size=1, max_size=3)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Renderings:
    """Thirty concepts of one-word names; the first has aliases, 10 and 11 look alike."""
    made = made_up()
    for concept in made.concepts:
        concept.tags = ["thing", f"tag{concept.id}"]
    made.concepts[0].aliases = ["baro one", "last name", "other name"]
    made.concepts[10].near, made.concepts[11].near = [11], [10]
    monkeypatch.setattr(module, "renderings", lambda: made)
    return made


def concept(label: str, aliases: list[str], tags: list[str] | None = None) -> Concept:
    return Concept(0, "1F600", label, sorted(aliases), tags or [], "objects", "old-tool")


def test_everyday_concepts_have_one_word_and_are_no_symbols(drawn: Renderings) -> None:
    drawn.concepts[3].label, drawn.concepts[4].label = "two words", "yo-yo"
    assert everyday_concepts(drawn.concepts) == [0, 1, 2, *range(5, 18), 27, 28, 29]


def test_apart_keeps_the_earlier_of_two_alike(drawn: Renderings) -> None:
    assert apart(drawn.concepts, [11, 5, 10, 3, 4], 4) == [3, 4, 5, 11]
    assert apart(drawn.concepts, [11, 5, 10, 3, 4], 2) == [5, 11]


def test_common_concepts_are_first_those_drawn_everywhere(drawn: Renderings) -> None:
    # fx lacks 0..8, EmojiTwo all even ones; 18..26 are symbols.
    everywhere, held_out = {9, 11, 13, 15, 17, 27, 29}, {1, 3, 5, 7}
    assert set(common_concepts(drawn, 0, 7)) == everywhere
    assert set(common_concepts(drawn, 0, 11)) == everywhere | held_out
    few = {tuple(common_concepts(drawn, seed, 3)) for seed in range(9)}
    assert len(few) > 1, "the seed draws among equals"
    everything = common_concepts(drawn, 0)
    assert everything == [c for c in everyday_concepts(drawn.concepts) if c != 10]


@pytest.mark.parametrize(
    ("label", "aliases", "expected"),
    [
        ("fox", ["reynard"], None),
        ("fox", ["animal", "reynard"], "reynard"),
        ("grinning face", ["gleeful", "grinning"], "gleeful"),
        ("grinning face", ["face", "grinning"], None),
        ("fox", ["able", "tool"], "able"),
        ("hotdog", ["cat", "dog"], "dog"),
    ],
)
def test_held_out_alias_is_the_last_that_the_label_does_not_tell(
    label: str, aliases: list[str], expected: str | None
) -> None:
    assert held_out_alias(concept(label, aliases)) == expected


def test_training_captions_of_a_concept() -> None:
    fox = concept("fox", ["a", "b", "c", "d", "z fox"], ["red", "z fox", "wild", "hid", "fox"])
    assert synonyms(fox) == ["fox", "a", "b", "c"]
    texts = training_captions(fox, {"hid"}, seed=0)
    assert texts == ["fox", "a", "b", "c", "fox red wild", "old tool fox"]
    assert training_captions(concept("fox", []), set(), 0) == ["fox", "old tool fox"]


@settings(max_examples=50, deadline=None)
@given(PHRASES, st.lists(PHRASES, max_size=5), st.lists(PHRASES, max_size=5), st.integers(0, 9))
def test_no_training_caption_holds_the_held_out_alias(
    label: list[str], aliases: list[list[str]], tags: list[list[str]], seed: int
) -> None:
    thing = concept(
        " ".join(label), [" ".join(a) for a in aliases], [" ".join(tag) for tag in tags]
    )
    cleaned = [clean_caption(text) for text in training_captions(thing, set(), seed)]
    assert len(set(cleaned)) == len(cleaned)
    assert cleaned[0] == clean_caption(thing.label)
    if (own := held_out_alias(thing)) is not None:
        assert not any(f" {clean_caption(own)} " in f" {text} " for text in cleaned)


def test_training_items_are_pictures_times_captions(drawn: Renderings) -> None:
    items = training_items(drawn, [9, 0], {0: ["a", "b"], 9: ["c"]})
    assert len(items) == 2 * 5 + 6
    assert items[0] == {"image": "images_rgba/noto/0000.png", "caption": "a", "image_id": 0}
    assert items[-1] == {"image": "images_rgba/fx/0009.png", "caption": "c", "image_id": 9}


def test_evaluation_items_and_their_hard_texts(drawn: Renderings) -> None:
    items = evaluation_items(drawn, "test", range(30), seed=0)
    assert [item["image_id"] for item in items] == list(range(30))
    kinds = {c.label: c.subgroup for c in drawn.concepts}
    for item in items:
        (label,) = item["caption"]
        assert item["hard"] != label
        assert kinds[item["hard"]] == kinds[label]
    assert items[10]["near"] == [11]
    assert NAMES[11] != items[10]["hard"]
    seeds = {evaluation_items(drawn, "test", range(30), seed)[20]["hard"] for seed in range(9)}
    assert len(seeds) > 1
    val = evaluation_items(drawn, "val", range(30), seed=0)
    assert [item["image_id"] for item in val] == list(range(1, 30, 2))
    assert val[5]["near"] == [], "10 is not in the list"


def test_hard_texts_come_from_further_off_where_a_subgroup_is_alone(drawn: Renderings) -> None:
    drawn.concepts[1].group = "animals-nature"
    items = evaluation_items(drawn, "test", [1, 12, 20], seed=0)
    assert items[0]["hard"] == NAMES[12], "the same group"
    assert items[2]["hard"] in (NAMES[1], NAMES[12]), "any"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.floats(0, 0.9))
def test_noise_gives_a_share_another_concepts_caption(seed: int, share: float) -> None:
    items = [{"caption": f"{c} {i}", "image_id": c} for c in range(6) for i in range(5)]
    near = {0: [1], 1: [0], 2: [], 3: [], 4: [], 5: []}
    noisy, truth = with_noise(items, share, near, seed)
    assert len(truth) == round(share * len(items))
    for index, (before, after) in enumerate(zip(items, noisy, strict=True)):
        assert before["image_id"] == after["image_id"]
        if index not in truth:
            assert after == before
            continue
        assert truth[index] == {"clean": before["caption"], "kind": "other concept"}
        other = int(after["caption"].split()[0])
        assert other != before["image_id"]
        assert other not in near[before["image_id"]]


def test_vocabulary_order(tmp_path: Path) -> None:
    entries = vocabulary(["fox fox fox", "T-Rex piñata fox", "fox\u2019s"])
    assert entries[:7] == [*SPECIAL_TOKENS, "fox", "pinata"]
    assert {"t", "rex", "\u2019", "s", "q", "##q", "##\u2019", *SENTENCE_WORDS.split()} <= set(
        entries
    )
    assert len(set(entries)) == len(entries)
    (tmp_path / "vocab.txt").write_text("\n".join(entries))
    tokens = WordPiece(tmp_path / "vocab.txt")
    ids, _ = tokens.batch(["fox"])
    assert ids.tolist() == [[tokens.cls_id, 5]]


@settings(max_examples=25, deadline=None)
@given(
    st.text(string.printable, max_size=30),
    st.text("abc\u00e9 \u00e7\u00df\u2019\u201c\u2014", max_size=10),
)
def test_a_vocabulary_spells_every_text(unseen: str, seen: str) -> None:
    tokens = WordPiece(vocabulary([seen]))
    ids, _ = tokens.batch([clean_caption(seen)])
    assert len(ids[0]) == 1 + len(words(seen)), "whole words"
    letters = "".join(letter for letter in unseen if letter.isalnum())
    ids, _ = tokens.batch([clean_caption(letters)])
    assert tokens.unk_id not in ids


def test_pixel_baseline(drawn: Renderings) -> None:
    drawn.pictures["fluent"][:] = drawn.pictures["openmoji"]
    drawn.pictures["etwo"][:] = np.roll(drawn.pictures["noto"], 1, axis=0)
    found = pixel_baseline(drawn, range(30))
    assert found["test"] == {"top1": 100.0, "top5": 100.0, "images": 30}
    assert found["val"]["top1"] == 0, "each looks like the concept before it"
    assert found["val"]["images"] == 15
    # fx alone would know 3, but has no picture of it.
    drawn.pictures["fluent"][3] = drawn.pictures["noto"][9]
    drawn.pictures["fx"][3] = drawn.pictures["noto"][9]
    assert pixel_baseline(drawn, range(30))["test"]["top1"] == pytest.approx(96.67)
    assert pixel_baseline(drawn, range(9))["test"]["top5"] <= 100


def test_build_and_what_its_config_reads(drawn: Renderings, tmp_path: Path) -> None:
    root, tmp_path = tmp_path, tmp_path / "emoji-pairs"
    record = pairs(tmp_path)
    assert record["fluent"]["licence"] == "MIT"
    train, noisy = read(tmp_path, "pairs_train"), read(tmp_path, "pairs_train_noise40")
    truth = read(tmp_path, "secret/noise_mask")
    assert len(train) == len(noisy)
    changed = [i for i, (a, b) in enumerate(zip(train, noisy, strict=True)) if a != b]
    assert changed == [int(i) for i in truth]
    assert len(truth) == round(0.4 * len(train))
    assert all(train[int(i)]["caption"] == entry["clean"] for i, entry in truth.items())

    assert read(tmp_path, "pairs_test_multi")[0]["caption"] == [NAMES[0], "baro one", "last name"]
    (syn,) = read(tmp_path, "pairs_test_syn")
    assert (syn["caption"], syn["image_id"], "hard" in syn) == (["other name"], 0, False)
    assert "other name" not in {item["caption"] for item in train}
    common = read(tmp_path, "common_pairs_train")
    assert {item["image_id"] for item in common} == set(common_concepts(drawn, 0))
    assert all(item in train for item in common[:20])
    vocabularies = [(tmp_path / f"{p}vocab.txt").read_text().split() for p in ("", "common_")]
    assert len(vocabularies[0]) > len(vocabularies[1])
    assert read(tmp_path, "pixel_baseline")["common"]["test"]["images"] == 20
    assert (tmp_path / "ATTRIBUTION.md").read_text() == "Drawn by chance.\n"

    shutil.rmtree(tmp_path / "secret")  # which no config may read
    config = OmegaConf.create({"data_root": str(root), "seed": 0, "data": {}})
    config.data = OmegaConf.load(CONF)
    data = instantiate(config.data, _recursive_=False)
    for stage in ("fit", "test"):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (64, 3, 32, 32)
    assert len(batch["image_ids"].unique()) <= 30
    assert not (batch["input_ids"] == data.tokenizer.unk_id).any()
    evaluated = next(iter(data.test_dataloader()))
    assert evaluated["text_image"].tolist() == list(range(30))


def test_pictures_have_alpha_in_training_and_lie_on_white_otherwise(
    drawn: Renderings, tmp_path: Path
) -> None:
    for pictures in drawn.pictures.values():
        pictures[:] = 0
        pictures[:, :36] = [10, 20, 30, 255]
        pictures[:, 36:45] = [200, 0, 0, 100]
    module._write_pictures(tmp_path, drawn)
    art = np.asarray(Image.open(tmp_path / "images_rgba/noto/0004.png"))
    white = np.asarray(Image.open(tmp_path / "images/fluent/0004.png"))
    assert (art.shape, white.shape) == ((64, 64, 4), (64, 64, 3))
    assert (art[:32] == [10, 20, 30, 255]).all()
    np.testing.assert_allclose(art[33:39], np.broadcast_to([200, 0, 0, 100], (6, 64, 4)), atol=2)
    assert (art[41:, :, 3] == 0).all(), "no dark rim"
    np.testing.assert_array_equal(white, on_ground(art[None])[0])
    names = {p.name for p in (tmp_path / "images_rgba").iterdir()}
    assert names == set(of_split("train"))
    assert len(list((tmp_path / "images_rgba/fx").iterdir())) == 21


def test_build_is_done_once(
    drawn: Renderings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pairs(tmp_path)
    monkeypatch.delattr(module, "renderings")
    assert pairs(tmp_path) == first


@pytest.mark.slow
def test_real_pairs(tmp_path: Path) -> None:
    """The pinned packages give these counts; needs npm or a filled cache."""
    pairs(tmp_path)
    lists = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*pairs_*.json")}
    counts = {name: (len(items), len({i["image"] for i in items})) for name, items in lists.items()}
    assert counts == {
        **dict.fromkeys(["pairs_train", "pairs_train_noise40"], (21569, 6129)),
        **dict.fromkeys(["pairs_test", "pairs_test_multi"], (1301, 1301)),
        **{"pairs_val": (969, 969), "pairs_test_syn": (244, 244)},
        **dict.fromkeys(["common_pairs_train", "common_pairs_train_noise40"], (5122, 1600)),
        **dict.fromkeys(["common_pairs_test", "common_pairs_test_multi"], (300, 300)),
        **{"common_pairs_val": (286, 286), "common_pairs_test_syn": (9, 9)},
    }
    sizes = [len((tmp_path / f"{p}vocab.txt").read_text().split("\n")) - 1 for p in ("", "common_")]
    assert sizes == [2666, 833]
    trained = {clean_caption(item["caption"]) for item in lists["pairs_train"]}
    held_out = {clean_caption(item["caption"][0]) for item in lists["pairs_test_syn"]}
    assert trained.isdisjoint(held_out)
    drawn = renderings()
    baseline = read(tmp_path, "pixel_baseline")
    expected = {"val": (37.36, 54.4, 969), "test": (45.35, 63.95, 1301)}
    for split, values in expected.items():
        assert list(baseline["all"][split].values()) == pytest.approx(values, abs=0.3)
    for item in lists["common_pairs_test"]:
        own, label = drawn.concepts[item["image_id"]], item["hard"]
        hard = next(c for c in drawn.concepts if c.label == label)
        assert hard.group == own.group
