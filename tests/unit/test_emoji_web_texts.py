"""Human and web texts of emoji: shares, what is wrong, what nobody but scoring code may read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from emoji_toy import NAMES, made_up, read
from hypothesis import given, settings
from hypothesis import strategies as st
from views_toy import plain_views

from benchmarks.miniatures.emoji import pairs as pairs_module
from benchmarks.miniatures.emoji import web_texts as module
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import of_split
from benchmarks.miniatures.emoji.render import Renderings
from benchmarks.miniatures.emoji.web_texts import (
    DESCRIPTIONS,
    descriptions,
    shared_out,
    web_texts,
    with_wrong_texts,
)
from shared.data.image_text.captioning import CaptioningData
from shared.data.image_text.pairs import PairData
from shared.data.text.cleaning import clean_caption_blip
from shared.data.text.wordpiece import WordPiece


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Renderings:
    made = made_up()
    for concept in made.concepts:
        concept.tags = ["thing", f"tag{concept.id}"]
    made.concepts[0].aliases = ["baro one", "last name", "other name"]
    made.concepts[10].near, made.concepts[11].near = [11], [10]
    for where in (module, pairs_module):
        monkeypatch.setattr(where, "renderings", lambda: made)
    return made


def test_descriptions_name_the_concept_and_no_held_out_alias(drawn: Renderings) -> None:
    texts = descriptions(drawn.concepts[0], 0)
    assert texts[0] == f"a {NAMES[0]}"
    assert len(texts) == len(set(texts)) == len(DESCRIPTIONS)
    known = {NAMES[0], "baro one", "last name"}
    for seed in range(9):
        for text in descriptions(drawn.concepts[0], seed):
            assert any(name in text for name in known)
            assert "other name" not in text
    assert len({tuple(descriptions(drawn.concepts[0], seed)) for seed in range(9)}) > 1
    plural = Concept(1, "1F600", "cherries", [], [], "food-drink", "food")
    assert descriptions(plural, 0)[1] == "the image shows cherries"


def test_few_drawings_of_each_concept_are_described(drawn: Renderings) -> None:
    drawn.present["openmoji"][4] = drawn.present["noto"][4] = drawn.present["noto1"][4] = False
    human, web = shared_out(drawn, range(30), seed=0)
    assert not set(human) & set(web)
    together = [(c, n) for c in range(30) for n in of_split("train") if drawn.present[n][c]]
    assert sorted(human + web) == sorted(together)
    assert [c for c, _ in human] == list(range(30))
    assert {c for c, _ in web} == set(range(30))
    assert len({name for _, name in human}) > 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1))
def test_half_of_the_wrong_texts_are_another_concepts(seed: int, share: float) -> None:
    kinds = ["objects", "symbols"]
    concepts = {
        c: Concept(c, f"1F60{c}", f"name{c}", [], [], kinds[c % 2], "tool", near=near)
        for c, near in enumerate(([1], [0], [], [], []))
    }
    captions = {c: [f"name{c}", f"tool name{c}"] for c in concepts}
    about = [(c, name) for c in concepts for name in ("noto", "twemoji", "fx")]
    items = [{"image": f"{n}", "caption": captions[c][0]} for n, (c, _) in enumerate(about)]
    wrong, truth = with_wrong_texts(items, about, concepts, captions, share, seed)
    assert len(truth) == round(share * len(items))
    assert list(truth) == sorted(truth)
    others = [index for index, told in truth.items() if told["kind"] == "other concept"]
    assert len(others) == (len(truth) + 1) // 2
    for index, (before, after) in enumerate(zip(items, wrong, strict=True)):
        if index not in truth:
            assert after == before
            continue
        assert truth[index]["clean"] == before["caption"]
        assert after["image"] == before["image"]
        own = concepts[about[index][0]]
        if index in others:
            other = int(after["caption"][-1])
            assert other != own.id
            assert other not in own.near
        else:
            assert truth[index]["kind"] == "file"
            assert "name" not in after["caption"]


def views() -> dict[str, Any]:
    ground = {"op": "ground", "low": 0.5, "high": 1.0}
    return plain_views(32, 0.5, 0.5, ground, {"op": "resize"})


def test_what_is_built_and_read(drawn: Renderings, tmp_path: Path) -> None:
    root, pictures = tmp_path / "web", tmp_path / "emoji-pairs"
    record = web_texts(root, pictures, seed=3)
    assert {"emoji-pairs", "emoji-web-texts", "fluent"} <= set(record)
    human, web = read(root, "human_train"), read(root, "web_train")
    truth, oracle = read(root, "secret/web_mask"), read(root, "web_oracle")
    assert len(human) == 30 * 5
    described = read(root, "human_pretrain")
    assert [(item["image"], text) for item in described for text in item["caption"]] == [
        (item["image"], item["caption"]) for item in human
    ]
    assert [len(item["caption"]) for item in described] == 30 * [5]
    assert len(web) == 30 * 5 + 21 - 30, "fx draws 21"
    assert len(truth) == round(0.5 * len(web))
    assert oracle == [item for n, item in enumerate(web) if str(n) not in truth]
    assert set(web[0]) == {"image", "caption"}, "an id would tell what the image shows"
    assert {item["image"] for item in human}.isdisjoint(item["image"] for item in web)
    for name in ("web_train", "human_train", "human_val", "human_test"):
        own = {item["image"] for item in read(root, f"common_{name}")}
        assert own < {item["image"] for item in read(root, name)}
    texts = [t for items in (human, web) for item in items for t in [item["caption"]]]
    assert not any("other name" in text for text in texts)
    assert "clean" not in json.dumps(web) + json.dumps(human)

    shutil.rmtree(root / "secret")  # which no training may read
    base: dict[str, Any] = {
        "image_root": str(pictures),
        "vocab": str(pictures / "vocab.txt"),
        "augmentation": views(),
        "image_mode": "RGBA",
        "text_rules": "blip",
        "batch_size": 16,
    }
    files = [str(root / f"{name}_train.json") for name in ("human", "web")]
    data = PairData(files={"train": files}, val_split=None, test_split=None, **base)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == (len(human) + len(web)) // 16
    assert not any((batch["input_ids"] == data.tokenizer.unk_id).any() for batch in batches)

    files_of = {split: str(root / f"human_{split}.json") for split in ("train", "val", "test")}
    truths = {split: str(root / f"human_{split}_gt.json") for split in ("val", "test")}
    captions = CaptioningData(files=files_of, references=truths, **base)
    for stage in ("fit", "test"):
        captions.setup(stage)
    (batch,) = list(captions.val_dataloader())
    assert batch["image_ids"].tolist() == list(range(1, 30, 2))
    said = captions.references("test")
    assert said is not None
    assert said.captions[7] == descriptions(drawn.concepts[7], 3)
    assert not (next(iter(captions.train_dataloader()))["input_ids"] == 1).any()


def test_built_once_and_another_recipe_is_refused(
    drawn: Renderings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = web_texts(tmp_path / "web", tmp_path / "pairs")
    monkeypatch.delattr(module, "renderings")
    assert web_texts(tmp_path / "web", tmp_path / "pairs") == first
    with pytest.raises(ValueError, match=r"seed=0 instead of 1"):
        web_texts(tmp_path / "web", tmp_path / "pairs", seed=1)


@pytest.mark.slow
def test_real_web_texts(tmp_path: Path) -> None:
    """The pinned packages give these counts; needs npm or a filled cache."""
    web_texts(tmp_path / "web", tmp_path / "pairs")
    counts = {
        prefix + name: len(read(tmp_path / "web", prefix + name))
        for prefix in ("", "common_")
        for name in (
            "human_train",
            "human_pretrain",
            "web_train",
            "web_oracle",
            "human_val",
            "human_test",
        )
    }
    assert counts == {
        **{"human_train": 6505, "web_train": 4828, "web_oracle": 2414},
        **{"human_pretrain": 1301, "human_val": 969, "human_test": 1301},
        **{"common_human_train": 1500, "common_web_train": 1300, "common_web_oracle": 650},
        **{"common_human_pretrain": 300, "common_human_val": 286, "common_human_test": 300},
    }
    tokenizer = WordPiece(tmp_path / "pairs" / "vocab.txt")
    for name in ("human_train", "web_train", "common_human_train", "common_web_train"):
        texts = [item["caption"] for item in read(tmp_path / "web", name)]
        ids, _ = tokenizer.batch([clean_caption_blip(text) for text in texts])
        assert (ids == tokenizer.unk_id).any(dim=1).sum() <= 1  # "!?"
        assert ids.shape[1] < 20
