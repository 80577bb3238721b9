"""Scenes for detectors of classes whose boxes nobody drew, and what finds boxes for them.

Training scenes come with a caption (`train`) or with boxes of the base classes (`boxed`). They show
six artists' drawings, validation shows a seventh's on the same photographs, the test an eighth's on
others. `open_vocabulary_scenes` and `pseudo_boxes` are the entries, for use as a `source`.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.mask import iou

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    generators_of,
    mixed,
    one_of,
    write_json,
)
from benchmarks.miniatures.code.sources import minilm
from benchmarks.miniatures.detection import Dataset
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.pairs import synonyms
from benchmarks.miniatures.emoji.scenes import (
    MADE_OF,
    Scene,
    SceneObject,
    attribution,
    coco_instances,
    listed,
    make_scenes,
    random_contents,
    scene_concepts,
    scene_provenance,
    some_objects,
    studio,
    write_scenes,
)
from benchmarks.miniatures.sentences import sentence_vectors
from methods.pb_ovd.detect import cli
from methods.pb_ovd.detect.proposals import DetectorProposals
from methods.pb_ovd.prompts import class_embeddings, prompts
from shared.checkpoints.zoo import zoo_file
from shared.data.captioned.decoding import Picture
from shared.data.errors import DataNotFoundError
from shared.files import read_json

VERSION, LABELS_VERSION = 2, 2  # raise them with any change of the scenes, or of what is found
NAME = "open-vocabulary"
CLASSES, NOVEL = 16, 6
OBJECTS = (1, 3)  # of a scene
LONGEST_SIDE = (30, 48)  # px, before turning
COUNTS = {"train": 2500, "boxed": 1500, "val": 150, "test": 300}  # scenes of 96 px
RARE, RARE_IMAGES = 5, 12  # base classes of the long tail, and the images that each is left
TEXT_LENGTH = 8.0  # of an embedded sentence, in place of 1: what is longer weighs more as a logit
PROPOSALS = 40  # of an image
AT_ONCE = 64  # images
GATE = "Named objects found at IoU 0.5, % (gate: pseudo boxes at least twice those by lot)"
Box = list[float]  # x, y, width, height


def open_vocabulary_scenes(
    root: str | Path, minilm_root: str | Path, seed: int = 0, **counts: int
) -> Provenance:
    """Make the scenes present in `root`, and in `minilm_root` what embeds the names of classes.

    `scenes/<split>/<12 digits>.png` show one to three objects of 16 classes. `captions_train.json`
    says of each training scene some of its objects, by synonyms; `vocabulary.json` has these.
    `instances_boxed.json`, in COCO's layout, has the boxes of the ten base classes, those of val
    and test all, with the `split` of each class; `embeddings.json` what the names of all are
    embedded as. Each of the six novel classes has a base class of its group. True boxes of the
    training scenes, `secret/instances_train.json`, and of what their captions name,
    `secret/named_train.json`, are for scoring and for an upper bound alone.
    `instances_long_tailed.json` has the images of `boxed` that are left when five base classes
    become rare, and knows all sixteen classes; `instances_long_tailed_seen.json` knows ten.

    Args:
        counts: of scenes, by split, where they are others than COUNTS.
    """
    recipe: dict[str, Any] = {"version": VERSION, "seed": seed, "counts": {**COUNTS, **counts}}
    recipe |= {"classes": CLASSES, "novel": NOVEL, "objects": OBJECTS, "sides": LONGEST_SIDE}
    recipe |= {"text_length": TEXT_LENGTH, "rare": [RARE, RARE_IMAGES]}
    made = minilm(minilm_root)

    def build(folder: Path) -> None:
        _build(folder, Path(minilm_root), seed, recipe["counts"])

    files = build_once(root, NAME, recipe | MADE_OF, build)
    return {**scene_provenance(f"emoji-{NAME}", files), **made}


def pseudo_boxes(
    root: str | Path,
    scenes_root: str | Path,
    minilm_root: str | Path,
    detector: str | Path,
    teacher: str,
    objective: str,
    seed: int = 0,
    required: bool = False,
    **counts: int,
) -> Provenance:
    """Make `open_vocabulary_scenes` present, and from their captions in `root` by `tenfold-detect
    label`, whose proposals are those of the `detector`: `labels/labels.json`, the pseudo boxes,
    with the tool's card and sheet; as controls `by_lot.json`, where each box is a proposal of its
    image drawn by lot, `centred.json`, where it is the one nearest to the centre, and
    `misnamed.json`, where each has the name of another; `proposals.json`; and `named.json`, the
    true boxes of what is named.

    The provenance says what all of them but the last are worth, see `quality`.
    Before there is a checkpoint of the detector, only the scenes are made, or, if it is `required`,
    DataNotFoundError names it.
    """
    model, scenes, root = Path(detector), Path(scenes_root), Path(root)
    if required and not model.is_file():
        raise DataNotFoundError(f"{model} not found: first run pb_ovd/mini with the same seed")
    made = open_vocabulary_scenes(scenes, minilm_root, **counts)
    if not model.is_file():
        return made
    recipe: dict[str, Any] = {"version": LABELS_VERSION, "seed": seed, "teacher": teacher}
    recipe["objective"] = objective
    judge = zoo_file(teacher) if teacher.startswith("zoo:") else Path(teacher)
    recipe["models"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, judge)]
    recipe["scenes"] = made[f"emoji-{NAME}"]["files"]["captions_train.json"]

    def build(folder: Path) -> None:
        images = scenes / "scenes" / "train"
        proposed = proposals(str(model), images)
        write_json(folder / "proposals.json", proposed)
        command = ["label", str(scenes / "captions_train.json"), "--image-root", str(images)]
        command += ["--vocabulary", str(scenes / "vocabulary.json"), "--teacher", teacher]
        command += ["--objective", objective, "--proposals", str(folder / "proposals.json")]
        command += ["--out", str(folder / "labels")]
        command += ["--seed", str(seed), "--workers", "0", "--batch-size", str(AT_ONCE)]
        if status := cli.main([*command, "--licence", "CC-BY-SA-4.0"]):
            raise RuntimeError(f"tenfold-detect label ended with {status}")
        labels = read_json(folder / "labels" / "labels.json")
        by_lot = dealt_boxes(labels, proposed, generator_of(seed, "boxes by lot"))
        centred = central_boxes(labels, proposed)
        misnamed = dealt_names(labels, generator_of(seed, "names by lot"))
        named = read_json(scenes / "secret" / "named_train.json")
        controls = {"by_lot": by_lot, "centred": centred, "misnamed": misnamed}
        for name, boxes in {**controls, "named": named}.items():
            write_json(folder / f"{name}.json", boxes)
        rated = {"pseudo_boxes": labels, **controls, "proposals": proposed}
        worth = {name: quality(boxes, named) for name, boxes in rated.items()}
        write_json(folder / "quality.json", worth)

    files = build_once(root, "pseudo-boxes", recipe, build)
    worth = read_json(root / "quality.json")
    found = {name.replace("_", " "): value["found"] for name, value in worth.items()}
    about = {"files": files, "licence": made[f"emoji-{NAME}"]["licence"], "figures": {GATE: found}}
    about["page"] = os.path.normpath(root / "labels" / "sheet.html")
    return {**made, "emoji-pseudo-boxes": about | worth}


def proposals(detector: str, images: Path) -> Dataset:
    """What a detector's first stage proposes on each image of a folder, best first, in COCO's form
    and of one category."""
    first_stage = DetectorProposals(detector, PROPOSALS, "cpu")
    listed_images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    files = sorted(images.iterdir())
    for start in range(0, len(files), AT_ONCE):
        paths = files[start : start + AT_ONCE]
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        seen = [Picture("", {}, one.shape[:2], one) for one in pictures]
        for path, picture, boxes in zip(paths, seen, first_stage.propose([], seen), strict=True):
            number, (height, width) = len(listed_images), picture.size
            about = {"id": number, "file_name": path.name, "height": height, "width": width}
            listed_images.append(about)
            for x1, y1, x2, y2 in np.asarray(boxes).tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                row = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box}
                annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": 1, "name": "object"}]
    return {"images": listed_images, "annotations": annotations, "categories": categories}


def dealt_boxes(labels: Dataset, proposed: Dataset, generator: np.random.Generator) -> Dataset:
    """The labels with another box each: a proposal of the image, drawn evenly."""
    return _replaced(labels, proposed, lambda boxes, image: one_of(boxes, generator))


def central_boxes(labels: Dataset, proposed: Dataset) -> Dataset:
    """The labels with another box each: the proposal whose centre is nearest to the image's."""

    def distance(box: Box, image: Mapping[str, Any]) -> float:
        x, y, width, height = box
        return math.hypot(x + (width - image["width"]) / 2, y + (height - image["height"]) / 2)

    def nearest(boxes: Sequence[Box], image: Mapping[str, Any]) -> Box:
        return min(boxes, key=lambda box: distance(box, image))

    return _replaced(labels, proposed, nearest)


def _replaced(
    labels: Dataset,
    proposed: Dataset,
    choose: Callable[[Sequence[Box], Mapping[str, Any]], Box],
) -> Dataset:
    """The labels with the box that `choose` takes from the proposals of each one's image."""
    boxes = {file: of for (file, _), of in _boxes(proposed).items()}
    images = {image["id"]: image for image in labels["images"]}
    rows = []
    for row in labels["annotations"]:
        image = images[row["image_id"]]
        x, y, width, height = choose(boxes[image["file_name"]], image)
        rows.append({**row, "bbox": [x, y, width, height], "area": width * height})
    return {**labels, "annotations": rows}


def dealt_names(labels: Dataset, generator: np.random.Generator) -> Dataset:
    """The labels with their classes dealt out anew among all boxes."""
    rows = labels["annotations"]
    classes = mixed([row["category_id"] for row in rows], generator)
    dealt = [{**row, "category_id": one} for row, one in zip(rows, classes, strict=True)]
    return {**labels, "annotations": dealt}


def quality(labels: Dataset, named: Dataset) -> dict[str, float]:
    """Percent of the objects `named` by captions that have a box of their name, or of the only
    class there is, with an IoU of 0.5 or more, `found`; and how many `boxes` come on each."""
    truth, given = _boxes(named), _boxes(labels)
    (only, *more) = {name for _, name in given}
    hits = 0
    for (file, name), boxes in truth.items():
        of_it = given.get((file, name if more else only))
        hits += bool(of_it) and bool((iou(of_it, boxes, [0] * len(boxes)) >= 0.5).any())
    count = len(named["annotations"])
    return {"found": 100 * hits / count, "boxes": len(labels["annotations"]) / count}


def _boxes(of: Dataset) -> dict[tuple[str, str], list[Box]]:
    """The boxes of each image's file and class."""
    files = {image["id"]: image["file_name"] for image in of["images"]}
    names = {category["id"]: category["name"] for category in of["categories"]}
    boxes: dict[tuple[str, str], list[Box]] = defaultdict(list)
    for row in of["annotations"]:
        boxes[files[row["image_id"]], names[row["category_id"]]].append(row["bbox"])
    return boxes


def held_back(groups: Sequence[str], count: int, generator: np.random.Generator) -> set[int]:
    """Places of `count` classes by lot, none of them the last of its group that stays; ValueError
    if there are not so many."""
    left: Counter[str] = Counter(groups)
    chosen: set[int] = set()
    for place in generator.permutation(len(groups)).tolist():
        if len(chosen) < count and left[groups[place]] > 1:
            left[groups[place]] -= 1
            chosen.add(place)
    if len(chosen) < count:
        raise ValueError(f"{len(groups)} classes are too few for {count} that are not seen")
    return chosen


def _build(folder: Path, minilm_root: Path, seed: int, counts: Mapping[str, int]) -> None:
    made_of = studio()
    table = made_of.drawn.concepts
    concepts = scene_concepts(made_of.drawn, seed, CLASSES)
    groups = [table[concept].group for concept in concepts]
    novel = held_back(groups, NOVEL, generator_of(seed, f"{NAME} classes"))
    for split, count in counts.items():
        contents = random_contents(concepts, count, seed, f"{NAME} {split}", *OBJECTS)
        made = make_scenes(made_of, split, contents, seed, NAME, LONGEST_SIDE)
        write_scenes(folder, made_of, split, made)
        coco = coco_instances(made_of, made, concepts)
        for place, category in enumerate(coco["categories"]):
            category["split"] = "unseen" if place in novel else "seen"
        if split == "boxed":
            write_json(folder / "instances_boxed.json", seen(coco))
            lot = generator_of(seed, f"{NAME} rare")
            tailed = long_tailed(coco, lot)
            write_json(folder / "instances_long_tailed.json", tailed)
            write_json(folder / "instances_long_tailed_seen.json", seen(tailed))
            continue
        if split != "train":
            write_json(folder / f"instances_{split}.json", coco)
            continue
        naming = generators_of(seed, f"{NAME} captions", count)
        said = [some_objects(s, g) for s, g in zip(made, naming, strict=True)]
        write_json(folder / "captions_train.json", _captions(made, said, table, seed))
        told = {(scene.id, thing.box) for scene, of in zip(made, said, strict=True) for thing in of}
        named = [r for r in coco["annotations"] if (r["image_id"], tuple(r["bbox"])) in told]
        write_json(folder / "secret" / "instances_train.json", coco)
        write_json(folder / "secret" / "named_train.json", {**coco, "annotations": named})
    labels = [table[concept].label for concept in concepts]
    vocabulary = {label: synonyms(table[c]) for label, c in zip(labels, concepts, strict=True)}
    write_json(folder / "vocabulary.json", vocabulary)
    sentences = [sentence for label in labels for sentence in prompts(label)]
    vectors = sentence_vectors(sentences, minilm_root).unflatten(0, (len(labels), -1))
    embedded = (TEXT_LENGTH * class_embeddings(vectors)).tolist()
    write_json(folder / "embeddings.json", dict(zip(labels, embedded, strict=True)))
    (folder / "ATTRIBUTION.md").write_text(attribution(made_of))


def seen(coco: Dataset) -> Dataset:
    """The set without the novel classes."""
    categories = [one for one in coco["categories"] if one["split"] == "seen"]
    known = {category["id"] for category in categories}
    kept = [row for row in coco["annotations"] if row["category_id"] in known]
    return {**coco, "categories": categories, "annotations": kept}


def long_tailed(coco: Dataset, generator: np.random.Generator) -> Dataset:
    """The set with all classes and the boxes of seen ones, without most images of `RARE` of these
    by lot: each stays on `RARE_IMAGES` of those that show no other rare class."""
    labelled = seen(coco)
    chosen = generator.permutation([one["id"] for one in labelled["categories"]])[:RARE].tolist()
    shown: dict[int, set[int]] = defaultdict(set)
    for row in labelled["annotations"]:
        shown[row["image_id"]].add(row["category_id"])
    rare = {image: of & {*chosen} for image, of in shown.items()}
    stay = {image for image, of in rare.items() if not of}
    for category in chosen:
        alone = mixed([image for image, of in rare.items() if of == {category}], generator)
        stay |= {*alone[:RARE_IMAGES]}
    images = [image for image in coco["images"] if image["id"] in stay]
    rows = [row for row in labelled["annotations"] if row["image_id"] in stay]
    return {**coco, "images": images, "annotations": rows}


def _captions(
    made: Sequence[Scene],
    said: Sequence[Sequence[SceneObject]],
    table: Sequence[Concept],
    seed: int,
) -> list[dict[str, str]]:
    """{image, caption} of each scene; the caption calls what is said of it by synonyms."""
    generators = generators_of(seed, f"{NAME} words", len(made))
    items = []
    for scene, things, generator in zip(made, said, generators, strict=True):
        names = [one_of(synonyms(table[thing.concept]), generator) for thing in things]
        items.append({"image": scene.file, "caption": listed(names)})
    return items
