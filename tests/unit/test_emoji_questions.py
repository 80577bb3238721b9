"""Texts about scenes: all truth is found again from the records, and no text tells its answer.

On made-up drawings; on the real ones in the slow tests.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emoji_truth import Seen, answer, holds
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.miniatures.emoji import scenes as module
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import PHOTOGRAPHS, RENDERINGS
from benchmarks.miniatures.emoji.pairs import vocabulary
from benchmarks.miniatures.emoji.questions import BEHIND, questions, text_baseline
from benchmarks.miniatures.emoji.render import Renderings
from benchmarks.miniatures.emoji.scenes import CLASSES, Studio, read_scenes, studio
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.evaluation.grounding import iou
from shared.overrides import CONF

SUBGROUPS = {
    "animals-nature animal-mammal": "dog cat lion elephant bear",
    "animals-nature animal-bird": "eagle owl duck",
    "animals-nature plant-flower": "rose tulip",
    "food-drink food-fruit": "cherries lemon banana",
    "travel-places transport-ground": "bus bicycle",
    "travel-places sky-weather": "sun foggy",
    "travel-places place-building": "castle bank",
    "activities sport": "volleyball",
}
SIZES = {"train": 64, "val": 24, "test": 40}
DEV = {"train": "train", "val": "dev", "test": "test"}


def toy() -> Studio:
    """Drawings are coloured blocks, photographs of one colour each."""
    table = [
        Concept(number, f"{number:X}", label, [], [], group, subgroup)
        for number, (group, subgroup, label) in enumerate(
            (*kind.split(), label) for kind, labels in SUBGROUPS.items() for label in labels.split()
        )
    ]
    art = np.zeros((len(table), 72, 72, 4), np.uint8)
    art[:, 8:60, 20:50] = [200, 30, 30, 255]
    pictures = {rendering.id: art for rendering in RENDERINGS}
    present = {rendering.id: np.ones(len(table), bool) for rendering in RENDERINGS}
    grounds = {p.id: np.full((120, 150, 3), 25 * i, np.uint8) for i, p in enumerate(PHOTOGRAPHS)}
    return Studio(Renderings(table, pictures, present, ""), grounds)


@dataclass
class Built:
    """The set where the configs look for it below `data`, beside a vocabulary."""

    data: Path
    concepts: dict[str, Concept]
    sizes: dict[str, int]

    @property
    def root(self) -> Path:
        return self.data / "emoji-questions"

    def read(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def shown(self, split: str) -> dict[str, Seen]:
        """What the pictures of a split show, by the twelve digits of their names."""
        table = list(self.concepts.values())
        return {
            f"{scene.id:012d}": Seen(
                tuple(
                    (table[o.concept].label, table[o.concept].subgroup, o.box)
                    for o in scene.objects
                ),
                scene.ground,
            )
            for scene in read_scenes(self.root, split)
        }


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """On made-up drawings; and on the real ones, which needs npm or a filled cache."""
    real = request.param == "real"
    made_of = studio() if real else toy()
    concepts = {concept.label: concept for concept in made_of.drawn.concepts}
    sizes = {split: count * (4 if real else 1) for split, count in SIZES.items()}
    made = Built(tmp_path_factory.mktemp("data"), concepts, sizes)
    classes = CLASSES if real else len(concepts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "studio", lambda: made_of)
        record = questions(made.root, classes=classes, objects=(1, 3), **sizes)
        assert questions(made.root, classes=classes, objects=(1, 3), **sizes) == record
    assert {"vqa_test.json", "baselines.json"} <= set(record["emoji-scenes"]["files"])
    (made.data / "emoji-pairs").mkdir()
    text = "".join(f"{entry}\n" for entry in vocabulary(concepts))
    (made.data / "emoji-pairs" / "common_vocab.txt").write_text(text)
    return made


def undisputed(built: Built, name: str, seen: Seen) -> bool:
    """Whether nothing of its sub-group is there, neither drawn nor behind."""
    behind = BEHIND.get(seen.ground, "").split()
    return built.concepts[name].subgroup not in [*seen.subgroups, *behind]


def test_vqa(built: Built) -> None:
    ids = []
    for split, count in built.sizes.items():
        shown, items = built.shown(split), built.read(f"vqa_{split}.json")
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            seen = shown[Path(item["image"]).stem]
            assert (built.root / item["image"]).is_file()
            ((most, votes), *others) = Counter(item["answer"]).most_common()
            assert (item["dataset"], len(item["answer"])) == ("vqa", 10)
            assert answer(item["question"], seen) == most
            name = item["question"].removesuffix("?").split()[-1]
            assert most != "no" or undisputed(built, name, seen)
            kind = item["question_type"]
            assert (kind == "presence") == (votes == 10)
            assert votes in (7, 9, 10)
            if kind == "where":
                assert others[0][0] == most.replace("top", "upper").replace("bottom", "lower")
            answers[item["question"] if kind == "presence" else kind][most] += 1
        presence = [counts for text, counts in answers.items() if text.endswith("?")]
        assert presence
        assert all(counts["yes"] == counts["no"] for counts in presence)
        assert 2 * count < len(items) <= 3 * count
        ids += [item["question_id"] for item in items]
    assert len(set(ids)) == len(ids)
    train = Counter(a for item in built.read("vqa_train.json") for a in item["answer"])
    listed = built.read("answer_list.json")
    assert set(listed) == set(train)
    assert listed == sorted(train, key=lambda given: (-train[given], given))


def test_nlvr(built: Built) -> None:
    for split, count in built.sizes.items():
        shown, items = built.shown(split), built.read(f"nlvr_{DEV[split]}.json")
        truths: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for item in items:
            pair = [shown[Path(file).stem] for file in item["images"]]
            assert str(holds(item["sentence"], *pair)) == item["label"]
            first, *_, name = item["sentence"].split()
            if item["label"] == "False" and first == "the":
                assert undisputed(built, name, pair["right" in item["sentence"]])
            truths[tuple(item["images"])].append(item["label"])
        assert all(sorted(labels) == ["False", "True"] for labels in truths.values())
        pictures = [file for pair in truths for file in pair]
        assert 0.7 * count < len(set(pictures)) == len(pictures)
    assert len({item["sentence"].split()[0] for item in items}) == 3, "of every sort"
    labels = [item["label"] for item in items]
    assert labels[::2].count("True") != len(labels) // 2, "in random order"


def test_entailment(built: Built) -> None:
    expected = {True: "entailment", False: "contradiction", None: "neutral"}
    for split, count in built.sizes.items():
        shown, items = built.shown(split), built.read(f"ve_{DEV[split]}.json")
        by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            seen = shown[item["image"]]
            assert expected[holds(item["sentence"], seen)] == item["label"]
            by_text[item["sentence"]][item["label"]] += 1
            if item["label"] == "contradiction" and item["sentence"].startswith("there"):
                assert undisputed(built, item["sentence"].split()[-1], seen)
        counts = Counter(item["label"] for item in items)
        assert set(counts) == set(expected.values())
        assert len(set(counts.values())) == 1
        assert all(told["entailment"] == told["contradiction"] for told in by_text.values())
        assert count < sum(counts.values()) <= 3 * count
        number, *_ = (item["image"] for item in items)
        with Image.open(built.root / "ve_images" / f"{number}.jpg") as image:
            jpeg = np.asarray(image).astype(int)
        with Image.open(built.root / "scenes" / split / f"{number}.png") as image:
            assert np.abs(jpeg - np.asarray(image)).mean() < 8


def test_referring(built: Built) -> None:
    refs = {r["ref_id"]: r for r in read_plain_pickle(built.root / "refcoco+" / "refs(unc).p")}
    instances, proposals = built.read("refcoco+/instances.json"), built.read("dets.json")
    objects = {annotation["id"]: annotation for annotation in instances["annotations"]}
    assert len(objects) == len(instances["annotations"])
    names = {c["id"]: c["name"] for c in instances["categories"]}
    images = {image["id"]: image["file_name"] for image in instances["images"]}
    used, parts = [], Counter[str]()
    for split in built.sizes:
        shown = built.shown(split)
        for item in built.read(f"refcoco+_{split}.json"):
            ref = refs[item["ref_id"]]
            used.append(item["ref_id"])
            (sentence,) = ref["sentences"]
            assert sentence["sent"] == item["text"] == " ".join(sentence["tokens"])
            own, seen = objects[ref["ann_id"]], shown[f"{ref['image_id']:012d}"]
            assert own["image_id"] == ref["image_id"]
            assert Path(item["image"]).name == ref["file_name"] == images[ref["image_id"]]
            name = names[own["category_id"]]
            (box,) = [box for other, _, box in seen.things if other == name]
            assert tuple(own["bbox"]) == box
            assert item["text"].split()[-1] == name
            subgroup = built.concepts[name].subgroup
            assert len(seen.things) > 1
            assert subgroup not in BEHIND.get(seen.ground, "").split()
            part = f"test{'BA'[subgroup.startswith('animal-')]}" if split == "test" else split
            assert ref["split"] == part
            parts[part] += 1
            near, others = np.split(np.array(proposals[str(ref["image_id"])]), [len(seen.things)])
            assert max(iou(box, proposal) for proposal in near.tolist()) > 0.57
            assert len(others) == 10
            boxes = np.concatenate([near, others])
            assert boxes.min() >= 0
            assert (boxes[:, :2] + boxes[:, 2:]).max() <= 96.1
    assert sorted(used) == sorted(refs)
    assert set(parts) == {"train", "val", "testA", "testB"}


def test_baselines(built: Built) -> None:
    found = built.read("baselines.json")
    assert set(found) == {"vqa", "nlvr", "ve"}
    assert found["ve"] <= 67
    train = [("x?", "yes"), ("x?", "yes"), ("y?", "no"), ("z?", "4"), ("t", "b"), ("t", "a")]
    test = [("x?", "yes"), ("y?", "no"), ("new?", "yes"), ("new?", "no"), ("t", "a")]
    assert text_baseline(train, test) == 80


@pytest.mark.parametrize("name", ["vqa", "nlvr", "ve", "refcoco"])
def test_configs_read_the_sets(name: str, built: Built) -> None:
    """Every text is in the pairs' vocabulary, no secret is read, and no text becomes untrue."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"data=emoji_{name}", f"data_root={built.data}", "name=toy"])
    content: Any = OmegaConf.to_container(config.data, resolve=True)
    assert "secret" not in json.dumps(content)
    operations = {recipe["op"] for recipe in content["augmentation"]["recipes"]["train"]}
    assert operations.isdisjoint({"flip", "random_resized_crop", "rand_augment"})
    data = instantiate(content | {"batch_size": 4}, _recursive_=False, _convert_="all")
    data.setup("fit")
    data.setup("test")
    size = content["augmentation"]["size"]
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in islice(loader, 4):
            ids = set(batch["input_ids"].unique().tolist())
            words = {data.tokenizer._tokenizer.id_to_token(number) for number in ids}
            assert "[UNK]" not in words
            assert not any(word.startswith("##") for word in words), "words are not spelt"
            assert batch["images"].shape[1:] == (3, size, size)
