"""Sets of questions, sentences and expressions about scenes, in the files that ALBEF reads.

`vqa`, `nlvr`, `entailment` and `referring` are the entries, for use as a `source` of a config. Each
makes scenes of its own; all truth comes from their records, secret/scene_records.json, which only
scoring code may read. `baselines.json` says how far one gets without looking at the pictures, and
`contact_<set>.png` is for a person to look at after any change.
"""

import pickle
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from benchmarks.miniatures.emoji.naming import Noun
from benchmarks.miniatures.emoji.questions import (
    PAIR_TEMPLATES,
    Box,
    Picture,
    Question,
    Statement,
    absent,
    balanced,
    draw_pair,
    draw_referred,
    expression,
    matched,
    presence_question,
    scene_questions,
    statements,
    ten_answers,
)
from benchmarks.miniatures.emoji.scenes import (
    CLASSES,
    LONGEST_SIDE,
    OBJECTS,
    SIZE,
    Scene,
    coco_instances,
    draw,
    file_name,
)
from benchmarks.miniatures.emoji.workshop import (
    Provenance,
    Told,
    Workshop,
    blind_accuracies,
    build_set,
)
from shared.data.errors import DataCorruptError
from shared.evaluation.grounding import iou

T = TypeVar("T")
Item = dict[str, Any]
PER_SCENE = 3  # questions or statements, on average
FAMILIES = ("beside", "objects", "count", "kind", "where", "presence")  # of questions
FORMS = ("object", "sub-group", "place")  # of statements that are true or false
ABSENT_DRAWN = 8  # concepts of other sub-groups that a scene may be asked for in vain
DISPUTED = 0.1  # share of the questions to which three of ten people give the alternative
COVERED = 0.95  # share of the test's usual answers that the answer list must hold
QUALITY = 95  # of JPEG
JITTER, RANDOM_BOXES = 0.1, 10
RANDOM_SIDE = (14, 46)  # px, about what turned drawings measure
FOUND = 0.5  # IoU
SHOWN = 36  # items of a split in the contact sheet


def vqa(
    root: str | Path,
    seed: int = 0,
    train: int = 4000,
    vg: int = 1000,
    val: int = 400,
    test: int = 600,
    classes: int = CLASSES,
    objects: Sequence[int] = OBJECTS,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> Provenance:
    """Make questions about scenes present in `root`, in the layout of VQA v2.

    Writes `vqa_{train,val,test}.json` (the test with its answers), `vg_qa.json` with one answer to
    a question, as Visual Genome has it, `answer_list.json` and `images/<split>/<12 digits>.png`. A
    sixth of the questions is of each of FAMILIES (their `question_type`), balanced over answers.

    Args:
        train, vg, val, test: scenes, each of three questions on average.
        classes: concepts of scenes; those without a plain noun or outside the small set of pairs
            are left out.
        objects: fewest and most of a scene. longest_side: of an object, from and to, in px.

    Raises:
        DataCorruptError: the answer list lacks too many test answers.
    """
    counts = {"train": train, "vg": vg, "val": val, "test": test}
    return build_set(root, "vqa", seed, counts, classes, (objects, longest_side), _write_vqa)


def nlvr(
    root: str | Path,
    seed: int = 0,
    train: int = 3000,
    dev: int = 400,
    test: int = 800,
    classes: int = CLASSES,
    objects: Sequence[int] = OBJECTS,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> Provenance:
    """Make sentences about pairs of scenes present in `root`, in the layout of NLVR2.

    Writes `nlvr_{train,dev,test}.json` and `images/<split>/<12 digits>.png`. About every pair there
    is one true and one false sentence, by each of PAIR_TEMPLATES in turn.

    Args:
        train, dev, test: pairs.
        classes: concepts of scenes; those without a plain noun or outside the small set of pairs
            are left out.
        objects: fewest and most of a scene. longest_side: of an object, from and to, in px.
    """
    counts = {"train": train, "dev": dev, "test": test}
    return build_set(root, "nlvr", seed, counts, classes, (objects, longest_side), _write_nlvr)


def entailment(
    root: str | Path,
    seed: int = 0,
    train: int = 3000,
    dev: int = 400,
    test: int = 600,
    classes: int = CLASSES,
    objects: Sequence[int] = OBJECTS,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> Provenance:
    """Make sentences about scenes present in `root`, in the layout of SNLI-VE.

    Writes `ve_{train,dev,test}.json` and `images/<12 digits>.jpg`. Labels are equally frequent, and
    each text that can be true is entailed as often as contradicted. Neutral ones show by their
    words, so that the text alone gets two thirds right: that is the number to beat.

    Args:
        train, dev, test: scenes, each of up to three sentences on average.
        classes: concepts of scenes; those without a plain noun or outside the small set of pairs
            are left out.
        objects: fewest and most of a scene. longest_side: of an object, from and to, in px.
    """
    counts = {"train": train, "dev": dev, "test": test}
    return build_set(root, "ve", seed, counts, classes, (objects, longest_side), _write_entailment)


def referring(
    root: str | Path,
    seed: int = 0,
    train: int = 3000,
    val: int = 600,
    test: int = 1200,
    classes: int = CLASSES,
    objects: Sequence[int] = OBJECTS,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> Provenance:
    """Make expressions for objects of scenes present in `root`, in the layout of RefCOCO+.

    Writes `refcoco+_{train,val,test}.json`, REFER's `refcoco+/refs(unc).p` and `instances.json`,
    `dets.json` and `images/<split>/<12 digits>.png`. In half of the scenes another object is of the
    sub-group of the one that is meant. In training all objects are referred to, else that one. Half
    of the test is "testA", where an animal is meant (in RefCOCO+ people), half "testB": the rest.

    Args:
        train, val, test: scenes.
        classes: concepts of scenes; those without a plain noun or outside the small set of pairs
            are left out.
        objects: fewest and most of a scene. longest_side: of an object, from and to, in px.
    """
    counts = {"train": train, "val": val, "test": test}
    return build_set(
        root, "refcoco+", seed, counts, classes, (objects, longest_side), _write_referring
    )


def answer_list(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """All answers given in training, the most frequent first (ties: alphabet).

    Raises:
        DataCorruptError: it lacks the usual answer of more test questions than COVERED allows.
    """
    counts = Counter(answer for item in train for answer in _answers(item))
    usual = [Counter(_answers(item)).most_common(1)[0][0] for item in test]
    covered = float(np.mean([answer in counts for answer in usual]))
    if covered < COVERED:
        raise DataCorruptError(
            f"the training answers hold {covered:.1%} of the test's, fewer than {COVERED:.0%}: ask "
            "for more training scenes"
        )
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def jittered(box: Box, generator: np.random.Generator, size: int = SIZE) -> list[float]:
    """Place and extent changed by up to JITTER of the extent, cut at the picture's edge."""
    x, y, width, height = box
    right, down, wider, higher = generator.uniform(-JITTER, JITTER, 4)
    corner = x + right * width, y + down * height
    return _inside(*corner, width * (1 + wider), height * (1 + higher), size)


def random_box(generator: np.random.Generator, size: int = SIZE) -> list[float]:
    """Sides uniform in RANDOM_SIDE, anywhere inside of the picture."""
    width, height = generator.uniform(*RANDOM_SIDE, 2)
    x, y = generator.uniform(0, size - width), generator.uniform(0, size - height)
    return _inside(x, y, width, height, size)


def _write_vqa(workshop: Workshop) -> None:
    made = {split: workshop.random_scenes(split) for split in ("train", "val", "test")}
    made["vg"] = workshop.random_scenes("vg", first_id=made["train"][-1].id + 1)
    asked: dict[str, list[Question]] = {}
    items: dict[str, list[Item]] = {}
    first = 0
    for split, scenes in made.items():
        files = workshop.save_pictures(split, scenes)
        asked[split] = _questions(workshop, split, scenes)
        disputed = _disputed(asked[split], workshop.generator(f"disputed {split}"))
        items[split] = [
            {
                "dataset": "vg" if split == "vg" else "vqa",
                "image": files[q.scene],
                "question": q.text,
                "question_id": first + place,
                "question_type": q.family,
                "answer": q.answer
                if split == "vg"
                else ten_answers(q.answer, q.alternative, place in disputed),
            }
            for place, q in enumerate(asked[split])
        ]
        first += len(items[split])
        workshop.write("vg_qa.json" if split == "vg" else f"vqa_{split}.json", items[split])
    workshop.write("answer_list.json", answer_list(items["train"] + items["vg"], items["test"]))
    told = {split: [(q.family, q.text, q.answer) for q in those] for split, those in asked.items()}
    workshop.write("baselines.json", _blind(told, ("val", "test")))
    workshop.write_records(made)
    workshop.write_sheet(
        [
            ([made[split][q.scene]], [q.text, _counted(item)])
            for split in ("train", "test")
            for q, item in list(zip(asked[split], items[split], strict=True))[:SHOWN]
        ]
    )


def _questions(workshop: Workshop, split: str, scenes: Sequence[Scene]) -> list[Question]:
    """Equally many of each family, in random order."""
    generator = workshop.generator(f"questions {split}")
    pictures = [workshop.picture(scene) for scene in scenes]
    found = [q for i, picture in enumerate(pictures) for q in scene_questions(i, picture)]
    found = _mixed(found, generator)
    quota = PER_SCENE * len(scenes) // len(FAMILIES)
    chosen = _presence_questions(workshop.nouns, pictures, quota, generator)
    for family in FAMILIES[:-1]:
        of_family = [q for q in found if q.family == family]
        if family == "count":  # equally many of animals and of food
            chosen += balanced(of_family, lambda q: q.text + q.answer, quota)
        else:
            chosen += balanced(of_family, lambda q: q.answer, quota)
    return _mixed(chosen, generator)


def _presence_questions(
    pool: Sequence[Noun],
    pictures: Sequence[Picture],
    quota: int,
    generator: np.random.Generator,
) -> list[Question]:
    """Each text as often with "yes" as with "no"; in half of the latter a sibling is there."""
    there, akin, other = [], [], []
    for scene, picture in enumerate(pictures):
        related, unrelated = absent(picture, pool)
        unrelated = _mixed(unrelated, generator)[:ABSENT_DRAWN]
        there += [presence_question(scene, noun, True) for noun in picture.nouns]
        akin += [presence_question(scene, noun, False) for noun in related]
        other += [presence_question(scene, noun, False) for noun in unrelated]
    there = _mixed(there, generator)
    pairs = matched(there, _mixed(akin, generator), lambda q: q.text)[: quota // 4]
    taken = {yes for yes, _ in pairs}
    left = [question for question in there if question not in taken]
    pairs += matched(left, _mixed(other, generator), lambda q: q.text)[: quota // 4]
    return [question for pair in pairs for question in pair]


def _disputed(questions: Sequence[Question], generator: np.random.Generator) -> set[int]:
    """Places of the questions to which three people give the alternative answer."""
    open_ones = [i for i, question in enumerate(questions) if question.alternative is not None]
    return set(_mixed(open_ones, generator)[: round(DISPUTED * len(questions))])


def _write_nlvr(workshop: Workshop) -> None:
    made, cells = {}, []
    told: dict[str, list[Told]] = {}
    for split, count in workshop.counts.items():
        pairs = [
            draw_pair(
                list(PAIR_TEMPLATES)[i % len(PAIR_TEMPLATES)],
                workshop.nouns,
                generator,
                workshop.objects,
            )
            for i, generator in enumerate(workshop.generators(f"pairs {split}", count))
        ]
        made[split] = workshop.scenes(split, pairs)
        files = workshop.save_pictures(split, made[split])
        items, told[split] = [], []
        for i, pair in enumerate(pairs):
            both = slice(2 * i, 2 * i + 2)
            for label, text in (("True", pair.true), ("False", pair.false)):
                items.append({"images": files[both], "sentence": text, "label": label})
                told[split].append((pair.template, text, label))
            if i < SHOWN // 2 and split != "dev":
                cells.append((made[split][both], [f"True: {pair.true}", f"False: {pair.false}"]))
        workshop.write(f"nlvr_{split}.json", _mixed(items, workshop.generator(f"order {split}")))
    workshop.write("baselines.json", _blind(told, ("dev", "test")))
    workshop.write_records(made)
    workshop.write_sheet(cells)


def _write_entailment(workshop: Workshop) -> None:
    made, told, cells = {}, {}, []
    (workshop.folder / "images").mkdir()
    for split in workshop.counts:
        made[split] = workshop.random_scenes(split)
        names = [Path(file_name(scene)).stem for scene in made[split]]
        for name, scene in zip(names, made[split], strict=True):
            picture = Image.fromarray(draw(workshop.made_of, scene))
            picture.save(workshop.folder / "images" / f"{name}.jpg", quality=QUALITY)
        chosen = _statements(workshop, split, made[split])
        items = [{"image": names[s.scene], "sentence": s.text, "label": s.label} for s in chosen]
        workshop.write(f"ve_{split}.json", items)
        told[split] = [(s.form, s.text, s.label) for s in chosen]
        shown = chosen[:SHOWN] if split != "dev" else []
        cells += [([made[split][s.scene]], [s.text, s.label]) for s in shown]
    workshop.write("baselines.json", _blind(told, ("dev", "test")))
    workshop.write_records(made)
    workshop.write_sheet(cells)


def _statements(workshop: Workshop, split: str, scenes: Sequence[Scene]) -> list[Statement]:
    """Equally many of each label, and of each form of what is true or false; in random order."""
    generator = workshop.generator(f"statements {split}")
    found = [
        statement
        for i, scene in enumerate(scenes)
        for statement in statements(i, workshop.picture(scene), workshop.nouns)
    ]
    found = _mixed(found, generator)
    pairs = []
    for form in FORMS:
        entailed, contradicted = (
            [s for s in found if (s.form, s.label) == (form, label)]
            for label in ("entailment", "contradiction")
        )
        of_form = matched(entailed, contradicted, lambda s: s.text)
        pairs += balanced(of_form, lambda pair: pair[0].text, PER_SCENE * len(scenes) // 9)
    neutral = [s for s in found if s.label == "neutral"]
    chosen = [statement for pair in pairs for statement in pair]
    return _mixed(chosen + balanced(neutral, lambda s: s.text, len(pairs)), generator)


def _write_referring(workshop: Workshop) -> None:
    made: dict[str, list[Scene]] = {}
    meant: dict[str, list[Noun]] = {}
    for split, count in workshop.counts.items():
        drawn = [
            # In the test, animals and others take turns two by two.
            draw_referred(
                workshop.nouns,
                i % 2 == 0,
                i % 4 < 2 if split == "test" else None,
                generator,
                workshop.objects,
            )
            for i, generator in enumerate(workshop.generators(f"contents {split}", count))
        ]
        made[split] = workshop.scenes(split, drawn)
        meant[split] = [referred.meant for referred in drawn]
    scenes = [scene for those in made.values() for scene in those]
    instances = coco_instances(workshop.made_of, scenes, list(workshop.pool))
    objects: defaultdict[int, list[Item]] = defaultdict(list)
    for annotation in instances["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    refs: list[Item] = []
    cells = []
    for split, of_split in made.items():
        files, items = workshop.save_pictures(split, of_split), []
        generators = workshop.generators(f"expressions {split}", len(of_split))
        for i, (scene, generator) in enumerate(zip(of_split, generators, strict=True)):
            there = workshop.picture(scene).nouns
            for noun, annotation in zip(there, objects[scene.id], strict=True):
                if split == "train" or noun == meant[split][i]:
                    text = expression(noun, [n for n in there if n != noun], generator)
                    part = _part(noun) if split == "test" else split
                    items.append({"image": files[i], "text": text, "ref_id": len(refs)})
                    refs.append(_reference(len(refs), annotation, scene, text, part))
                    if i < SHOWN and noun == meant[split][i] and split != "val":
                        cells.append(([scene], [part, text]))
        workshop.write(f"refcoco+_{split}.json", items)
    generators = workshop.generators("proposals", len(scenes))
    proposals = {
        scene.id: [
            *(jittered(thing.box, generator) for thing in scene.objects),
            *(random_box(generator) for _ in range(RANDOM_BOXES)),
        ]
        for scene, generator in zip(scenes, generators, strict=True)
    }
    workshop.write("refcoco+/instances.json", instances)
    (workshop.folder / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    workshop.write("dets.json", proposals)
    workshop.write("baselines.json", _box_chances(refs, objects, proposals))
    workshop.write_records(made)
    workshop.write_sheet(cells)


def _part(noun: Noun) -> str:
    return "testA" if noun.subgroup.startswith("animal-") else "testB"


def _reference(number: int, annotation: Item, scene: Scene, text: str, split: str) -> Item:
    """An entry of REFER's pickle, with one sentence."""
    sentence = {"sent_id": number, "sent": text, "raw": text, "tokens": text.split()}
    return {
        "ref_id": number,
        "ann_id": annotation["id"],
        "image_id": scene.id,
        "category_id": annotation["category_id"],
        "file_name": file_name(scene),
        "split": split,
        "sent_ids": [number],
        "sentences": [sentence],
    }


def _box_chances(
    refs: Sequence[Item],
    objects: Mapping[int, Sequence[Item]],
    proposals: Mapping[int, Sequence[Sequence[float]]],
) -> dict[str, dict[str, float]]:
    """Accuracies in percent without reading: of a random proposal, of the largest (which an even
    map chooses), and of a random one of the objects."""
    found: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for ref in refs:
        if ref["split"] == "train":
            continue
        there, boxes = objects[ref["image_id"]], proposals[ref["image_id"]]
        (own,) = [a["bbox"] for a in there if a["id"] == ref["ann_id"]]
        right = [iou(box, own) >= FOUND for box in boxes]
        largest = int(np.argmax([width * height for _, _, width, height in boxes]))
        found[ref["split"]].append((float(np.mean(right)), right[largest], 1 / len(there)))
    names = ("random proposal", "largest proposal", "random object")
    return {
        split: dict(zip(names, (100 * np.mean(rows, axis=0)).round(2).tolist(), strict=True))
        for split, rows in found.items()
    }


def _blind(told: Mapping[str, Sequence[Told]], splits: Sequence[str]) -> dict[str, Any]:
    """`blind_accuracies` of each split, of all its items and of each family."""
    found: dict[str, Any] = {}
    for split in splits:
        families = sorted({family for family, _, _ in told[split]})
        found[split] = {"items": len(told[split]), **blind_accuracies(told["train"], told[split])}
        found[split]["families"] = {
            family: blind_accuracies(
                *([t for t in told[part] if t[0] == family] for part in ("train", split))
            )
            for family in families
        }
    return found


def _inside(x: float, y: float, width: float, height: float, size: int) -> list[float]:
    """[x, y, width, height] of the part inside of the picture, to a tenth of a pixel."""
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size)), min(y + height, float(size))
    return [round(float(value), 1) for value in (left, top, right - left, bottom - top)]


def _answers(item: Item) -> list[str]:
    answer = item["answer"]
    return [answer] if isinstance(answer, str) else answer


def _counted(item: Item) -> str:
    return ", ".join(f"{answer} {count}" for answer, count in Counter(_answers(item)).items())


def _mixed(values: Sequence[T], generator: np.random.Generator) -> list[T]:
    return [values[i] for i in generator.permutation(len(values))]
