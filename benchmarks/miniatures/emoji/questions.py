"""Questions, sentences and expressions about scenes, in the files that ALBEF and BLIP read.

`questions` is the entry, for use as a `source` of a config. Truth comes from the scenes' records.
What people could argue about is neither asked nor said: nothing near a middle line is in a
quadrant, and a concept is called absent only where nothing of its sub-group is drawn or shown by
the photograph behind.
"""

import pickle
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    mixed,
    one_of,
    write_json,
)
from benchmarks.miniatures.emoji.scenes import NUMBERS, SIZE, Scene, article, read_scenes, scenes
from benchmarks.miniatures.synthetic_pairs import reference
from shared.files import read_json

Item = dict[str, Any]
VERSION = 1  # raise it with any change of the texts
SPLITS = {"train": "train", "val": "dev", "test": "test"}  # as VQA and as NLVR2 call them
# Labels of one word that name no thing, and "scroll", which OpenMoji draws as a computer's mouse.
NO_NOUNS = (
    "foggy locked unlocked camping cooking construction wedding tennis bowling badminton scroll"
)
# Sub-groups of what a photograph shows by itself.
BEHIND = {
    "astronaut": "person transport-air",
    "chelsea": "animal-mammal",
    "grass": "plant-other plant-flower",
    "hubble_deep_field": "sky-weather event",
    "china": "place-building place-religious place-other",
    "coffee": "dishware drink food-prepared food-sweet",
    "rocket": "transport-air",
    "flower": "plant-flower plant-other",
}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
UNSEEN = ("old", "new", "expensive", "famous")  # what no drawing shows
EXPRESSIONS = ("the {name}", "{name}", "{phrase}")
DISPUTED = 10  # every tenth question is disputed: three of ten people give the other right answer
JITTER, RANDOM_BOXES, RANDOM_SIDE = 0.1, 10, (14, 46)  # share of the extent; boxes; px


@dataclass(frozen=True)
class Thing:
    """An object of a scene: its label in lower case, and its entry in COCO's instances file."""

    name: str
    subgroup: str
    annotation: Item

    @property
    def phrase(self) -> str:
        """With the article that it takes: "a dog", "cherries"."""
        return f"{article(self.name)} {self.name}".strip()

    @property
    def verb(self) -> str:
        return "is" if article(self.name) else "are"

    def quadrant(self) -> str | None:
        """Where its centre is, None if that is nearer to a middle line than 1/16 of the side."""
        x, y, width, height = self.annotation["bbox"]
        across, down = x + width / 2 - SIZE / 2, y + height / 2 - SIZE / 2
        if min(abs(across), abs(down)) < SIZE / 16:
            return None
        return f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


@dataclass(frozen=True)
class Picture:
    """A scene, its file below the set's folder, and the things that it shows."""

    scene: Scene
    file: str
    things: tuple[Thing, ...]

    def shows_behind(self, thing: Thing) -> bool:
        """Whether the photograph itself shows something of the thing's sub-group."""
        return thing.subgroup in BEHIND.get(self.scene.ground, "").split()

    def lacks(self, thing: Thing) -> bool:
        """Whether nobody could see the like of it here."""
        drawn = {other.subgroup for other in self.things}
        return thing.subgroup not in drawn and not self.shows_behind(thing)


@dataclass(frozen=True)
class Fact:
    """Whether a thing is in a picture, or if `place` names one, in that quadrant of it."""

    picture: Picture
    thing: Thing
    place: str
    true: bool


def questions(
    root: str | Path,
    seed: int = 0,
    train: int = 4000,
    val: int = 400,
    test: int = 1200,
    **layout: Any,
) -> Provenance:
    """Make scenes and texts about them present in `root`; the arguments are those of `scenes`.

    Beside the files of `scenes` it writes `vqa_{train,val,test}.json` and `answer_list.json` in
    VQA's layout; about pairs of scenes `nlvr_{train,dev,test}.json`, a true and a false sentence
    each; `ve_{train,dev,test}.json` with pictures `ve_images/*.jpg` in SNLI-VE's layout; and
    `refcoco+_{train,val,test}.json`, `dets.json`, `refcoco+/{refs(unc).p,instances.json}` in
    REFER's, where "testA" means an animal and "testB" anything else. `baselines.json` has the
    `text_baseline` of each.
    """
    root = Path(root)
    made = scenes(root, seed, train, val, test, **layout)
    files = made["emoji-scenes"]["files"]
    recipe = {"version": VERSION, "seed": seed, "scenes": files["secret/scene_records.json"]}
    files |= build_once(root, "questions", recipe, lambda folder: _build(folder, root, seed))
    return made


def facts(pictures: Sequence[Picture], pool: Sequence[Thing]) -> list[Fact]:
    """What is true and what is false of pictures: the things that are there, those of `pool` that
    are absent without doubt, and of each thing whose quadrant is clear all four quadrants."""
    found = []
    for picture in pictures:
        found += [Fact(picture, thing, "", True) for thing in picture.things]
        found += [Fact(picture, thing, "", False) for thing in pool if picture.lacks(thing)]
        for thing in picture.things:
            if (place := thing.quadrant()) is not None:
                found += [Fact(picture, thing, name, name == place) for name in QUADRANTS]
    return found


def balanced(known: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    """Pairs of a true and a false fact that say the same of two pictures, each used once: of these
    each text is as often right as wrong, so that it tells nothing by itself."""
    waiting: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in known:
        if not fact.true:
            waiting[fact.thing.name, fact.place].append(fact)
    stacks = ((fact, waiting[fact.thing.name, fact.place]) for fact in known if fact.true)
    return [(fact, stack.pop()) for fact, stack in stacks if stack]


def visual_questions(
    pictures: Sequence[Picture], known: Sequence[Fact], generator: np.random.Generator
) -> list[Item]:
    """A question a picture how many things there are, one where something is, one whether it is
    there, as far as such can be asked."""
    known, count = mixed(known, generator), len(pictures)
    there = balanced([fact for fact in known if not fact.place])[: count // 2]
    items = []
    for picture in pictures:
        number = len(picture.things)
        answers = str(number), NUMBERS[number]
        items.append(_question(picture, "objects", "how many objects are there?", *answers))
    for fact in [fact for fact in known if fact.place and fact.true][:count]:
        other = fact.place.replace("top", "upper").replace("bottom", "lower")
        text = f"where {fact.thing.verb} the {fact.thing.name}?"
        items.append(_question(fact.picture, "where", text, fact.place, other))
    for fact in chain(*there):
        text, answer = f"{fact.thing.verb} there {fact.thing.phrase}?", "yes" if fact.true else "no"
        items.append(_question(fact.picture, "presence", text, answer))
    return mixed(items, generator)


def entailments(
    pictures: Sequence[Picture], known: Sequence[Fact], generator: np.random.Generator
) -> list[Item]:
    """As many entailed as contradicted and as neutral sentences, up to three a picture. Neutral
    ones show by their words: the text alone gets two thirds right, the number to beat."""
    pairs = balanced(mixed(known, generator))[: len(pictures)]
    items = []
    for fact in chain(*pairs):
        thing, label = fact.thing, "entailment" if fact.true else "contradiction"
        there = f"there {thing.verb} {thing.phrase}"
        text = f"the {thing.name} {thing.verb} in the {fact.place}" if fact.place else there
        items.append({"image": fact.picture.file, "sentence": text, "label": label})
    for picture in mixed(pictures, generator)[: len(pairs)]:
        thing = one_of(picture.things, generator)
        text = f"the {thing.name} {thing.verb} {one_of(UNSEEN, generator)}"
        items.append({"image": picture.file, "sentence": text, "label": "neutral"})
    return mixed(items, generator)


def paired_sentences(
    left: Picture, right: Picture, pool: Sequence[Thing], generator: np.random.Generator
) -> tuple[str, str]:
    """A true and a false sentence about two pictures: what both contain, what one of them has, or
    how many objects there are in total."""
    known = {thing.name for thing in right.things}
    shared = [thing for thing in left.things if thing.name in known]
    alone = [t for t in left.things if right.lacks(t)] + [t for t in right.things if left.lacks(t)]
    if shared and alone:
        told = [f"both images contain {one_of(s, generator).phrase}" for s in (shared, alone)]
    elif generator.random() < 0.3:
        total = len(left.things) + len(right.things)
        wrong = one_of([n for n in (total - 1, total + 1) if n > 1], generator)
        told = [f"there are {NUMBERS[number]} objects in total" for number in (total, wrong)]
    else:
        side = int(generator.integers(2))
        picture, other = ((left, right), (right, left))[side]
        start = f"the {('left', 'right')[side]} image has"
        # The false sentence names what the other image has, or, as often, anything else.
        absent = [t for t in other.things if picture.lacks(t)] if generator.random() < 0.5 else []
        absent = absent or [thing for thing in pool if picture.lacks(thing)]
        told = [f"{start} {one_of(s, generator).phrase}" for s in (picture.things, absent)]
    return told[0], told[1]


def partners(
    pictures: Sequence[Picture], generator: np.random.Generator
) -> list[tuple[Picture, Picture]]:
    """Each picture in one pair; in nearly half of the pairs both show something in common."""
    order = mixed(pictures, generator)
    half = len(order) // 4 * 2
    order[:half] = sorted(order[:half], key=lambda picture: picture.things[0].name)
    return mixed(list(zip(order[::2], order[1::2], strict=False)), generator)


def text_baseline(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> float:
    """Share of the test's answers, in percent, that the most frequent training answer to the same
    text gets right without a picture, or where training lacks the text, that to any; of equally
    frequent ones the first in the alphabet."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in train:
        counts[text][answer] += 1
        counts[""][answer] += 1
    usual = {t: min(c.items(), key=lambda item: (-item[1], item[0]))[0] for t, c in counts.items()}
    right = [usual.get(text, usual[""]) == answer for text, answer in test]
    return round(100 * float(np.mean(right)), 2)


def _build(folder: Path, root: Path, seed: int) -> None:
    pictures, instances = _read(root)
    sorts = {thing.name: thing for picture in pictures["train"] for thing in picture.things}
    pool = [sorts[name] for name in sorted(sorts)]
    told: defaultdict[str, list[list[tuple[str, str]]]] = defaultdict(list)
    answers: Counter[str] = Counter()
    asked = 0
    (folder / "ve_images").mkdir()
    for split, of_split in pictures.items():
        known = facts(of_split, pool)
        vqa = visual_questions(of_split, known, generator_of(seed, f"vqa {split}"))
        for place, item in enumerate(vqa):
            right, *other = item["answer"]
            votes = len(other) * (3 if place % DISPUTED == 0 else 1)
            item |= {"question_id": asked + place, "answer": [right] * (10 - votes) + other * votes}
        asked += len(vqa)
        write_json(folder / f"vqa_{split}.json", vqa)
        ve = entailments(of_split, known, generator_of(seed, f"ve {split}"))
        named = [{**item, "image": Path(item["image"]).stem} for item in ve]
        write_json(folder / f"ve_{SPLITS[split]}.json", named)
        for picture in of_split:
            with Image.open(root / picture.file) as image:
                image.save(folder / "ve_images" / f"{Path(picture.file).stem}.jpg", quality=95)
        generator = generator_of(seed, f"nlvr {split}")
        nlvr: list[Item] = [
            {"images": [left.file, right.file], "sentence": text, "label": label}
            for left, right in partners(of_split, generator)
            for label, text in zip(
                ("True", "False"), paired_sentences(left, right, pool, generator), strict=True
            )
        ]
        nlvr = mixed(nlvr, generator)
        write_json(folder / f"nlvr_{SPLITS[split]}.json", nlvr)
        told["vqa"].append([(item["question"], item["answer"][0]) for item in vqa])
        for name, items in (("ve", ve), ("nlvr", nlvr)):
            told[name].append([(item["sentence"], item["label"]) for item in items])
        if split == "train":
            answers.update(answer for item in vqa for answer in item["answer"])
    write_json(folder / "answer_list.json", sorted(answers, key=lambda a: (-answers[a], a)))
    baselines = {name: text_baseline(train, test) for name, (train, _, test) in told.items()}
    write_json(folder / "baselines.json", baselines)
    _write_referring(folder, pictures, instances, generator_of(seed, "referring"))


def _read(root: Path) -> tuple[dict[str, list[Picture]], dict[str, list[Item]]]:
    """The scenes of each split whose things all have a noun, and one instances file of all."""
    pictures: dict[str, list[Picture]] = {}
    instances: dict[str, list[Item]] = {"images": [], "annotations": []}
    for split in SPLITS:
        coco = read_json(root / f"instances_{split}.json")
        kinds = {c["id"]: (c["name"].lower(), c["supercategory"]) for c in coco["categories"]}
        first = len(instances["annotations"])
        annotations = [{**a, "id": first + a["id"]} for a in coco["annotations"]]
        things: defaultdict[int, list[Thing]] = defaultdict(list)
        for a in annotations:
            things[a["image_id"]].append(Thing(*kinds[a["category_id"]], a))
        pictures[split] = [
            Picture(s, f"scenes/{split}/{s.file}", tuple(things[s.id]))
            for s in read_scenes(root, split)
            if not any(thing.name in NO_NOUNS for thing in things[s.id])
        ]
        instances["images"] += coco["images"]
        instances["annotations"] += annotations
        instances["categories"] = coco["categories"]
    return pictures, instances


def _question(picture: Picture, kind: str, text: str, *answers: str) -> Item:
    """`answers` are the right one and, where there is one, another that fewer people give."""
    about = {"dataset": "vqa", "image": picture.file, "question": text, "question_type": kind}
    return {**about, "answer": list(answers)}


def _write_referring(
    folder: Path,
    pictures: dict[str, list[Picture]],
    instances: dict[str, list[Item]],
    generator: np.random.Generator,
) -> None:
    """An expression for each thing with another beside it and none of its sub-group behind it."""
    refs: list[Item] = []
    proposals: dict[int, list[list[float]]] = {}
    for split, of_split in pictures.items():
        items = []
        for picture in of_split:
            clear = [t for t in picture.things if not picture.shows_behind(t)]
            for thing in clear if len(picture.things) > 1 else []:
                text = one_of(EXPRESSIONS, generator).format(name=thing.name, phrase=thing.phrase)
                part = "A" if thing.subgroup.startswith("animal-") else "B"
                part = f"test{part}" if split == "test" else split
                items.append({"image": picture.file, "text": text, "ref_id": len(refs)})
                name = picture.scene.file
                refs.append(reference(len(refs), thing.annotation, name, text, part))
            proposals[picture.scene.id] = _proposals(picture.things, generator)
        write_json(folder / f"refcoco+_{split}.json", items)
    write_json(folder / "refcoco+" / "instances.json", instances)
    (folder / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    write_json(folder / "dets.json", proposals)


def _proposals(things: Sequence[Thing], generator: np.random.Generator) -> list[list[float]]:
    """Boxes [x, y, width, height] inside of the picture: each thing's, changed by up to JITTER of
    its extent, then RANDOM_BOXES anywhere."""
    boxes = np.array([thing.annotation["bbox"] for thing in things], float)
    boxes += generator.uniform(-JITTER, JITTER, boxes.shape) * np.tile(boxes[:, 2:], 2)
    sides = generator.uniform(*RANDOM_SIDE, (RANDOM_BOXES, 2))
    boxes = np.concatenate([boxes, np.hstack([generator.uniform(0, SIZE - sides), sides])])
    first, last = boxes[:, :2].clip(min=0), (boxes[:, :2] + boxes[:, 2:]).clip(max=SIZE)
    found: list[list[float]] = np.hstack([first, last - first]).round(1).tolist()
    return found
