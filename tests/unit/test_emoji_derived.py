"""Sets derived from scenes: all truth is found again from the records, and nothing is told apart
by the texts alone. On made-up drawings; the real ones' sizes and baselines are pinned once."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emoji_truth import SPECIES, Seen, answer, check_picture, holds
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.miniatures.emoji import derived, workshop
from benchmarks.miniatures.emoji.backgrounds import PHOTOGRAPHS
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.derived import answer_list, jittered, random_box
from benchmarks.miniatures.emoji.naming import GROUNDS, nouns
from benchmarks.miniatures.emoji.packages import RENDERINGS, of_split
from benchmarks.miniatures.emoji.pairs import common_concepts, synonyms, vocabulary
from benchmarks.miniatures.emoji.questions import Contents
from benchmarks.miniatures.emoji.render import Renderings
from benchmarks.miniatures.emoji.scenes import (
    CLASSES,
    LONGEST_SIDE,
    OBJECTS,
    Studio,
    draw,
    read_scenes,
    studio,
)
from benchmarks.miniatures.emoji.workshop import Workshop, blind_accuracies, text_sheet
from shared.data.errors import DataCorruptError
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.evaluation.grounding import iou
from shared.overrides import CONF

SUBGROUPS = {
    "animals-nature animal-mammal": "dog poodle cat lion elephant bear",
    "animals-nature animal-bird": "eagle owl duck",
    "animals-nature animal-marine": "whale crab",
    "animals-nature plant-flower": "rose tulip",
    "food-drink food-fruit": "cherries lemon banana",
    "food-drink food-prepared": "bread taco",
    "travel-places transport-ground": "bus bicycle",
    "travel-places sky-weather": "sun cloud foggy",
    "travel-places place-building": "castle bank school",
    "objects tool": "wrench bomb",
    "activities sport": "volleyball",
}
ALIASES = {"lion": ["lion face"], "bicycle": ["bike"], "dog": ["dog2"]}
SIZES: dict[str, dict[str, int]] = {
    "vqa": {"train": 160, "vg": 24, "val": 24, "test": 48},
    "nlvr": {"train": 24, "dev": 8, "test": 16},
    "entailment": {"train": 48, "dev": 24, "test": 24},
    "referring": {"train": 24, "val": 12, "test": 24},
}
CONFIGS = {"vqa": "vqa", "nlvr": "nlvr", "entailment": "ve", "referring": "refcoco"}


def toy() -> Studio:
    """Drawings are coloured blocks, photographs of one colour each."""
    table = [
        Concept(number, f"{number:X}", label, ALIASES.get(label, []), [], group, subgroup)
        for number, (group, subgroup, label) in enumerate(
            (*kind.split(), label) for kind, labels in SUBGROUPS.items() for label in labels.split()
        )
    ]
    generator = np.random.default_rng(0)
    pictures = {}
    for rendering in RENDERINGS:
        pictures[rendering.id] = np.zeros((len(table), 72, 72, 4), np.uint8)
        colours = generator.integers(0, 256, (len(table), 1, 1, 3))
        pictures[rendering.id][:, 8:60, 20:50, :3] = colours
        pictures[rendering.id][:, 8:60, 20:50, 3] = 255
    present = {rendering.id: np.ones(len(table), bool) for rendering in RENDERINGS}
    grounds = {p.id: np.full((120, 150, 3), 25 * i, np.uint8) for i, p in enumerate(PHOTOGRAPHS)}
    drawn = Renderings(table, pictures, present, {"val": [], "test": []}, "By chance.\n")
    return Studio(drawn, grounds)


STUDIO = toy()


@dataclass
class Built:
    """Every set where its config looks for it below `data`, beside a vocabulary."""

    data: Path
    made_of: Studio
    sizes: dict[str, dict[str, int]]

    def root(self, name: str) -> Path:
        return self.data / f"emoji-{CONFIGS[name]}"

    def concepts(self) -> dict[str, Concept]:
        return {concept.label: concept for concept in self.made_of.drawn.concepts}

    def shown(self, name: str, split: str) -> dict[str, Seen]:
        """What the pictures of a split show, by the twelve digits of their names."""
        table = self.made_of.drawn.concepts
        return {
            f"{scene.id:012d}": Seen(
                tuple(
                    (table[o.concept].label, table[o.concept].subgroup, o.box)
                    for o in scene.objects
                ),
                scene.ground,
                scene.size,
            )
            for scene in read_scenes(self.root(name), split)
        }


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """On made-up drawings; and on the real ones, which needs npm or a filled cache."""
    real = request.param == "real"
    data = tmp_path_factory.mktemp("data")
    made_of = studio() if real else STUDIO
    classes = CLASSES if real else len(STUDIO.drawn.concepts)
    grown = {name: {k: 4 * n for k, n in sizes.items()} for name, sizes in SIZES.items()}
    made = Built(data, made_of, grown if real else SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop, "studio", lambda: made_of)
        for name, sizes in made.sizes.items():
            record = getattr(derived, name)(made.root(name), classes=classes, **sizes)
            (own,) = [entry for key, entry in record.items() if key.startswith("emoji-")]
            assert "baselines.json" in own["files"]
            assert not any(
                file.endswith((".png", ".jpg")) for file in own["files"] if "contact" not in file
            )
    known = common_concepts(made_of.drawn, 0)
    names = [a for i in known for a in synonyms(made_of.drawn.concepts[i])]
    (data / "emoji-pairs").mkdir()
    text = "".join(f"{entry}\n" for entry in vocabulary(names))
    (data / "emoji-pairs" / "common_vocab.txt").write_text(text)
    return made


def read(root: Path, name: str) -> Any:
    return json.loads((root / name).read_text())


@pytest.mark.parametrize("name", SIZES)
def test_scenes(name: str, built: Built) -> None:
    sizes, root = built.sizes[name], built.root(name)
    shown = {split: built.shown(name, split) for split in sizes}
    per_entry = 2 if name == "nlvr" else 1
    for split, count in sizes.items():
        assert len(shown[split]) == per_entry * count
        for picture in shown[split].values():
            check_picture(picture)
            assert 2 <= len(picture.things) <= 4
            assert "foggy" not in picture.names
            assert not {"dog", "poodle"} <= set(picture.names)
            assert not {"rose", "tulip"} <= set(picture.names)
            if picture.ground in GROUNDS:
                assert GROUNDS[picture.ground].names.isdisjoint(picture.names)
    numbers = [number for those in shown.values() for number in those]
    assert len(set(numbers)) == len(numbers), "ids are unique over the splits"
    files = [path for path in (root / "images").rglob("*") if path.is_file()]
    assert sorted(path.stem for path in files) == sorted(numbers)
    artists: dict[str, set[str]] = {split: set() for split in sizes}
    for split in artists:
        for scene in read_scenes(root, split):
            artists[split] |= {thing.rendering for thing in scene.objects}
    assert artists["train"] <= set(of_split("train"))
    assert artists["test"] == set(of_split("test"))
    assert artists["dev" if "dev" in artists else "val"] == set(of_split("val"))


def test_pictures_are_those_of_the_records(built: Built) -> None:
    for name, split in (("vqa", "test"), ("entailment", "train")):
        scene = read_scenes(built.root(name), split)[3]
        (path,) = (built.root(name) / "images").rglob(f"{scene.id:012d}.*")
        with Image.open(path) as image:
            assert image.size == (96, 96)
            difference = np.asarray(image).astype(int) - draw(built.made_of, scene)
        assert np.abs(difference).mean() < (1 if name == "vqa" else 8)
        assert path.suffix == (".png" if name == "vqa" else ".jpg")


def test_vqa(built: Built) -> None:
    root, sizes = built.root("vqa"), built.sizes["vqa"]
    files = {split: f"vqa_{split}.json" for split in ("train", "val", "test")}
    lists = {split: read(root, file) for split, file in (files | {"vg": "vg_qa.json"}).items()}
    for split, items in lists.items():
        shown = built.shown("vqa", split)
        assert len(items) == 3 * sizes[split]
        families = Counter(item["question_type"] for item in items)
        assert set(families.values()) == {len(items) // 6}
        usual = []
        for item in items:
            folder, number = Path(item["image"]).parent, Path(item["image"]).stem
            assert (root / item["image"]).is_file()
            assert folder == Path("images") / split
            given = [item["answer"]] * 10 if split == "vg" else item["answer"]
            assert (len(given), item["dataset"]) == (10, "vg" if split == "vg" else "vqa")
            ((most, votes), *others) = Counter(given).most_common()
            assert answer(item["question"], shown[number]) == most
            usual.append((item["question_type"], item["question"], most))
            check_alternative(item, most, [other for other, _ in others], built.concepts())
            assert votes in (7, 9, 10)
        if split != "vg":
            disputed = sum(max(Counter(item["answer"]).values()) == 7 for item in items)
            assert disputed == round(len(items) / 10)
        check_balance(usual)
    numbers = [item["question_id"] for items in lists.values() for item in items]
    assert len(set(numbers)) == len(numbers)
    assert read(root, "answer_list.json") == answer_list(
        lists["train"] + lists["vg"], lists["test"]
    )


def check_alternative(
    item: dict[str, Any], most: str, others: list[str], concepts: dict[str, Concept]
) -> None:
    if item["question_type"] in ("presence", "kind"):
        assert others == []
    elif item["question_type"] == "beside":
        assert others == [] or others[0] in synonyms(concepts[most])[1:]
    elif item["question_type"] == "where" and item["dataset"] == "vqa":
        assert others == [most.replace("top", "upper").replace("bottom", "lower")]
    elif item["dataset"] == "vqa":
        words = ("zero", "one", "two", "three", "four")
        assert others == [words[int(most)]]


def check_balance(usual: list[tuple[str, str, str]]) -> None:
    """Presence: each text as often with yes as with no. Where and objects: nearly even."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    presence: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for family, text, most in usual:
        answers[family][most] += 1
        if family == "presence":
            presence[text][most] += 1
    assert all(counts["yes"] == counts["no"] for counts in presence.values())
    for family, least in (("where", 4), ("objects", 3)):
        counts = [*answers[family].values()]
        assert len(counts) == least
        assert max(counts) - min(counts) <= 1


def test_half_of_what_is_absent_has_a_sibling_there(built: Built) -> None:
    shown, concepts = built.shown("vqa", "train"), built.concepts()
    akin = []
    for item in read(built.root("vqa"), "vqa_train.json"):
        if item["question_type"] == "presence" and item["answer"][0] == "no":
            name = item["question"].removesuffix("?").split()[-1]
            akin.append(concepts[name].subgroup in shown[Path(item["image"]).stem].subgroups)
    assert len(akin) == built.sizes["vqa"]["train"] // 4
    assert sum(akin) == len(akin) // 2


def test_nlvr(built: Built) -> None:
    root = built.root("nlvr")
    for split, count in built.sizes["nlvr"].items():
        shown = built.shown("nlvr", split)
        items = read(root, f"nlvr_{split}.json")
        assert len(items) == 2 * count
        truths: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        templates: Counter[tuple[str, bool]] = Counter()
        for item in items:
            assert set(item) == {"images", "sentence", "label"}
            assert all((root / file).is_file() for file in item["images"])
            pair = [shown[Path(file).stem] for file in item["images"]]
            assert str(holds(item["sentence"], *pair)) == item["label"]
            truths[tuple(item["images"])].append(item["label"])
            first = item["sentence"].split()[0]
            templates[first, item["label"]] += 1
        assert all(sorted(labels) == ["False", "True"] for labels in truths.values())
        assert len({file for pair in truths for file in pair}) == 2 * count
        for template in ("the", "both", "one", "there"):
            assert templates[template, "True"] == templates[template, "False"] == count // 4
        labels = [item["label"] for item in items]
        assert any(one == other for one, other in pairwise(labels)), "in random order"


def test_entailment(built: Built) -> None:
    root, concepts = built.root("entailment"), built.concepts()
    expected = {True: "entailment", False: "contradiction", None: "neutral"}
    for split, count in built.sizes["entailment"].items():
        shown = built.shown("entailment", split)
        items = read(root, f"ve_{split}.json")
        by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            assert set(item) == {"image", "sentence", "label"}
            assert (root / "images" / f"{item['image']}.jpg").is_file()
            picture = shown[item["image"]]
            assert expected[holds(item["sentence"], picture)] == item["label"]
            by_text[item["sentence"]][item["label"]] += 1
            name = item["sentence"].split()[-1]
            if item["label"] == "contradiction" and name in concepts.keys() - SPECIES.keys():
                assert concepts[name].subgroup in picture.subgroups, "one of its sub-group is there"
        counts = Counter(item["label"] for item in items)
        assert len(set(counts.values())) == 1
        assert set(counts) == set(expected.values())
        for told in by_text.values():
            assert told["entailment"] == told["contradiction"]
        assert 2 * count < sum(counts.values()) <= 3 * count


def test_referring(built: Built) -> None:
    root, concepts = built.root("referring"), built.concepts()
    refs = {ref["ref_id"]: ref for ref in read_plain_pickle(root / "refcoco+" / "refs(unc).p")}
    instances, proposals = read(root, "refcoco+/instances.json"), read(root, "dets.json")
    objects = {annotation["id"]: annotation for annotation in instances["annotations"]}
    categories = {c["id"]: c["name"] for c in instances["categories"]}
    images = {image["id"]: image for image in instances["images"]}
    used = []
    for split, count in built.sizes["referring"].items():
        shown = built.shown("referring", split)
        items = read(root, f"refcoco+_{split}.json")
        akin = []
        for item in items:
            ref = refs[item["ref_id"]]
            used.append(item["ref_id"])
            (sentence,) = ref["sentences"]
            assert sentence["sent"] == item["text"] == " ".join(sentence["tokens"])
            own = objects[ref["ann_id"]]
            picture = shown[f"{ref['image_id']:012d}"]
            name = categories[own["category_id"]]
            assert own["image_id"] == ref["image_id"]
            assert tuple(own["bbox"]) == picture.box(name)
            assert (
                Path(item["image"]).name == ref["file_name"] == images[ref["image_id"]]["file_name"]
            )
            subgroup = concepts[name].subgroup
            others = [s for n, s in zip(picture.names, picture.subgroups, strict=True) if n != name]
            bare = item["text"].removeprefix("the ").removeprefix("an ").removeprefix("a ")
            aliases = synonyms(concepts[name])[1:]
            assert bare == name or (bare in aliases and subgroup not in others)
            akin.append(subgroup in others)
            if split != "test":
                assert ref["split"] == split
            else:
                assert ref["split"] == ("testA" if subgroup.startswith("animal-") else "testB")
        if split == "train":
            assert len(items) == sum(len(picture.things) for picture in shown.values())
        else:
            assert len(items) == count
            assert sum(akin) == count // 2
    assert sorted(used) == sorted(refs)
    parts = Counter(ref["split"] for ref in refs.values())
    assert parts["testA"] == parts["testB"] == built.sizes["referring"]["test"] // 2
    for number in images:
        boxes = proposals[str(number)]
        own = [a["bbox"] for a in objects.values() if a["image_id"] == number]
        assert len(boxes) == len(own) + 10
        assert all(iou(box, moved) > 0.57 for box, moved in zip(own, boxes, strict=False))
        for x, y, width, height in boxes:
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= 96 + 1e-6


def test_no_scene_in_two_splits(built: Built) -> None:
    for name, sizes in built.sizes.items():
        laid_out = [
            tuple((thing.concept, thing.box) for thing in scene.objects)
            for split in sizes
            for scene in read_scenes(built.root(name), split)
        ]
        assert len(set(laid_out)) == len(laid_out)


def test_the_same_again_and_prefixes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "studio", lambda: STUDIO)
    sizes = {"classes": 29, **SIZES["nlvr"]}
    for folder, changes in (
        ("one", {}),
        ("same", {}),
        ("more", {"train": 28}),
        ("other", {"seed": 1}),
    ):
        derived.nlvr(tmp_path / folder, **(sizes | changes))
    for file in ("nlvr_train.json", "secret/scene_records.json", "baselines.json"):
        assert read(tmp_path / "same", file) == read(tmp_path / "one", file)
    fewer, more = (read_scenes(tmp_path / folder, "train") for folder in ("one", "more"))
    assert more[: len(fewer)] == fewer
    tests = [read_scenes(tmp_path / folder, "test") for folder in ("one", "other")]
    assert tests[0] != tests[1]
    with pytest.raises(DataCorruptError, match="seed=1 instead of 0"):
        derived.nlvr(tmp_path / "other", **sizes)


def test_baselines(built: Built) -> None:
    for name in ("vqa", "nlvr", "entailment"):
        for split in read(built.root(name), "baselines.json").values():
            assert set(split) == {"items", "majority", "family", "text", "families"}
    test = read(built.root("vqa"), "baselines.json")["test"]
    assert test["families"]["presence"]["text"] == 50
    assert test["families"]["where"]["family"] == 25
    test = read(built.root("nlvr"), "baselines.json")["test"]
    assert test["items"] == 2 * built.sizes["nlvr"]["test"]
    assert test["majority"] == test["family"] == 50
    test = read(built.root("entailment"), "baselines.json")["test"]
    assert test["family"] == pytest.approx(66.67, abs=0.01)
    assert test["families"]["unseen"]["text"] == 100
    boxes = read(built.root("referring"), "baselines.json")
    assert set(boxes) == {"val", "testA", "testB"}
    for split in boxes.values():
        assert split["random proposal"] < 15
        assert 25 <= split["random object"] <= 50


def test_blind_accuracies() -> None:
    train = [("f", "x?", "yes"), ("f", "x?", "yes"), ("f", "y?", "no"), ("g", "z?", "4")]
    test = [("f", "x?", "yes"), ("f", "y?", "no"), ("g", "w?", "4"), ("h", "v?", "yes")]
    assert blind_accuracies(train, test) == {"majority": 50.0, "family": 50.0, "text": 75.0}
    tied = [("f", "x?", "b"), ("f", "x?", "a")]
    assert blind_accuracies(tied, [("f", "x?", "a")])["majority"] == 100, "the alphabet decides"


def test_an_answer_list_that_lacks_too_much() -> None:
    train = [{"answer": ["dog"] * 9 + ["hound"]}, {"answer": "cat"}, {"answer": "cat"}]
    test = [{"answer": ["dog"] * 10}] * 19 + [{"answer": ["cow"] * 9 + ["dog"]}]
    assert answer_list(train, test) == ["dog", "cat", "hound"]
    with pytest.raises(DataCorruptError, match=r"hold 90\.0% of the test's, fewer than 95%: ask"):
        answer_list(train, test[9:19] + test[19:] * 1 + test[:8] + test[19:])


def test_boxes() -> None:
    generator = np.random.default_rng(0)
    for box in ((10, 20, 30, 20), (0, 0, 20, 20), (70, 70, 26, 26)):
        for _ in range(50):
            x, y, width, height = jittered(box, generator)
            assert abs(x - box[0]) <= 0.1 * box[2] + 0.05
            assert abs(y - box[1]) <= 0.1 * box[3] + 0.05
            assert 0.79 * box[2] <= width <= 1.1 * box[2] + 0.05
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= 96.05
    boxes = np.array([random_box(generator) for _ in range(200)])
    assert boxes[:, 2:].min() >= 14
    assert boxes[:, 2:].max() <= 46
    assert boxes[:, :2].min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 96.05


def test_a_ground_that_shows_the_same_is_replaced(tmp_path: Path) -> None:
    pool = nouns(STUDIO.drawn.concepts, lambda concept: [concept.label])
    cat, bus = (next(n for n in pool.values() if n.name == name) for name in ("cat", "bus"))
    shop = Workshop(tmp_path, "toy", 0, {}, STUDIO, pool, OBJECTS, LONGEST_SIDE)
    made = shop.scenes("train", [Contents(((cat, bus),))] * 40)
    assert "chelsea" not in {scene.ground for scene in made}
    assert [scene.id for scene in made] == [made[0].id + i for i in range(40)]
    plain = shop.scenes("train", [Contents(((bus,),))] * 40)
    assert "chelsea" in {scene.ground for scene in plain}


def test_sheet() -> None:
    picture = np.full((96, 96, 3), 200, np.uint8)
    sheet = text_sheet([([picture, picture], ["one", "two"]), ([picture], ["three"])] * 4)
    assert sheet.size == (3 * 400, 3 * 228)
    assert np.asarray(sheet).min() < 50, "text is written"


def composed(name: str, data: Path) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"data={name}", f"data_root={data}", "name=toy"])
    return OmegaConf.to_container(config.data, resolve=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_read_the_sets(name: str, built: Built) -> None:
    """Every text is in the pairs' vocabulary, and batches come out."""
    config = composed(f"emoji_{CONFIGS[name]}", built.data)
    data = instantiate(config | {"batch_size": 4}, _recursive_=False, _convert_="all")
    data.setup("fit")
    data.setup("test")
    unknown = data.tokenizer.unk_id
    pieces = {i for i in range(len(data.tokenizer)) if spelled(data, i)}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in islice(loader, 10):
            ids = set(batch["input_ids"].unique().tolist())
            assert unknown not in ids
            assert not ids & pieces, "words are not spelt"
            size = config["augmentation"]["size"]
            assert batch["images"].shape[1:] == (3, size, size)
    if name == "vqa":
        known = {i for ids in data.answers.values() for i in ids}
        assert unknown not in known
        assert not known & pieces


def spelled(data: Any, number: int) -> bool:
    return data.tokenizer._tokenizer.id_to_token(number).startswith("##")


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_stay_true_in_training_and_secrets_are_not_read(name: str, built: Built) -> None:
    config = composed(f"emoji_{CONFIGS[name]}", built.data)
    assert "secret" not in json.dumps(config)
    operations = {recipe["op"] for recipe in config["augmentation"]["recipes"]["train"]}
    assert operations.isdisjoint({"flip", "random_resized_crop"})
