"""Scenes: a few drawings side by side on a piece of a photograph, each with its box and mask.

Training scenes show six artists' drawings, validation a seventh's on the same photographs, the test
an eighth's on others. `scenes` is the entry, for use as a `source` of a config.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    generators_of,
    one_of,
    write_json,
    write_pictures,
)
from benchmarks.miniatures.detection import run_lengths
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import (
    PHOTOGRAPHS,
    VERSIONS,
    grounds,
    of_split,
    photographs,
    provenance,
)
from benchmarks.miniatures.emoji.pairs import apart, everyday_concepts, synonyms
from benchmarks.miniatures.emoji.render import OPAQUE, Box, Renderings, extent, renderings
from shared.data.readers.files import refusing

VERSION = 1  # raise it with any change of the scenes
SIZE = 96
CLASSES = 120
OBJECTS = (2, 4)  # of a scene
LONGEST_SIDE = (18, 36)  # px, before turning
ROTATION = 30.0  # degrees to either side
TRIES = 30  # places tried for an object
LAYOUTS = 1000  # attempts at a scene
FIRST_ID = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000, "test_seen": 4_000_000}
FIRST_ID["boxed"] = 5_000_000
# Whose drawings a split shows, and whose photographs, where these are another split's.
DRAWN = {"test_seen": "train", "boxed": "train"}
GROUNDS = {"test_seen": "test", "boxed": "train"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# What a build's recipe says of drawings and photographs.
MADE_OF = {"packages": VERSIONS, "photographs": {p.id: p.sha256 for p in PHOTOGRAPHS}}
CAPTIONS = 3  # of a training scene, one of which is drawn at each access


@dataclass(frozen=True)
class SceneObject:
    """One drawing of a scene: its longest side in px before turning, its rotation in degrees,
    counter-clockwise, and the box of what is then drawn."""

    concept: int
    rendering: str
    longest: int
    rotation: float
    box: Box


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `draw` makes the picture of it."""

    id: int  # unique over the splits
    size: int  # side of the square picture in px
    ground: str  # the photograph behind the objects
    crop: tuple[int, int, int]  # left, top and side of the square part of it
    objects: tuple[SceneObject, ...]  # without overlaps; the order means nothing

    @property
    def file(self) -> str:
        return f"{self.id:012d}.png"


@dataclass
class Studio:
    """What scenes are made of: all drawings, and photographs {id: (H, W, 3) uint8}."""

    drawn: Renderings
    photographs: dict[str, NDArray[np.uint8]]

    def backdrop(self, ground: str, crop: tuple[int, int, int], size: int) -> Image.Image:
        """The square part of a photograph that `crop` names (left, top and side), at `size` px."""
        left, top, side = crop
        box = (left, top, left + side, top + side)
        photograph = Image.fromarray(self.photographs[ground])
        return photograph.resize((size, size), Image.Resampling.BOX, box)

    def drawn_backdrop(
        self, split: str, size: int, generator: np.random.Generator
    ) -> tuple[str, tuple[int, int, int]]:
        """A photograph of a split, and a crop of it of `size` px or more where it has as many."""
        ground = one_of(grounds(split), generator)
        height, width = self.photographs[ground].shape[:2]
        side = int(generator.integers(min(size, height, width), min(height, width) + 1))
        left, top = (int(generator.integers(room - side + 1)) for room in (width, height))
        return ground, (left, top, side)

    def sprite(self, thing: SceneObject) -> Image.Image:
        """A drawing cut to its extent, scaled, turned, and cut again to its box: RGBA."""
        art = _cut(Image.fromarray(self.drawn.pictures[thing.rendering][thing.concept]))
        scale = thing.longest / max(art.size)
        width, height = (max(1, round(side * scale)) for side in art.size)
        scaled = art.resize((width, height), Image.Resampling.LANCZOS)
        return _cut(scaled.rotate(thing.rotation, Image.Resampling.BICUBIC, expand=True))


def studio() -> Studio:
    """All drawings and photographs; the first call on a machine fetches and draws them."""
    return Studio(renderings(), photographs())


def scenes(
    root: str | Path,
    seed: int = 0,
    train: int = 6000,
    val: int = 600,
    test: int = 600,
    classes: int = CLASSES,
    objects: Sequence[int] = OBJECTS,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> Provenance:
    """Make the scenes present in `root`.

    Writes `scenes/<split>/<12 digits>.png` (96 px, two to four objects of different concepts),
    `instances_<split>.json` in COCO's layout, `captions_train.json`,
    `coco_karpathy_{train,val,test}.json` with `coco_karpathy_{val,test}_gt.json`, and the scenes'
    records in `secret/scene_records.json`, which only builders and scoring code may read. `objects`
    are fewest and most of a scene, `longest_side` limits an object's in px.
    """
    counts = {"train": train, "val": val, "test": test}
    recipe = {"version": VERSION, "seed": seed, "counts": counts, "classes": classes}
    if tuple(objects) != OBJECTS:
        recipe["objects"] = list(objects)
    if tuple(longest_side) != LONGEST_SIDE:
        recipe["longest_side"] = list(longest_side)
    recipe |= MADE_OF

    def build(folder: Path) -> None:
        _build(folder, seed, counts, classes, objects, longest_side)

    return scene_provenance("emoji-scenes", build_once(Path(root), "scenes", recipe, build))


def scene_provenance(name: str, files: Mapping[str, str]) -> Provenance:
    """The record of a set of scenes, and of the drawings and photographs that it is made of."""
    behind = {p.id: {"files": {p.file: p.sha256}, "licence": p.licence} for p in PHOTOGRAPHS}
    return {**provenance(name, files), **behind}


def scene_concepts(drawn: Renderings, seed: int, count: int = CLASSES) -> list[int]:
    """Sorted ids of the concepts in scenes: everyday ones that Noto 1, validation and test draw, no
    two alike, drawn by `seed`; ValueError if there are fewer than `count`."""
    needed = ["noto1", *of_split("val"), *of_split("test")]
    fit = np.all([drawn.present[name] for name in needed], axis=0)
    pool = [c for c in everyday_concepts(drawn.concepts) if fit[c]]
    chosen = apart(drawn.concepts, generator_of(seed, "concepts").permutation(pool).tolist(), count)
    if len(chosen) < count:
        raise ValueError(f"{count} concepts asked for scenes, but only {len(chosen)} are fit")
    return chosen


def make_scenes(
    made_of: Studio,
    split: str,
    contents: Sequence[Sequence[int]],
    seed: int,
    name: str,
    longest_side: Sequence[int] = LONGEST_SIDE,
) -> list[Scene]:
    """Lay out one scene for each list of concepts in `contents`; a concept may come twice.

    Scene i depends on (seed, name, split, i) and its own contents alone. Where an object finds no
    place in 30 tries, the scene is laid out anew; ValueError where that never helps.
    """
    made = []
    generators = generators_of(seed, f"{name} {split}", len(contents))
    for i, (concepts, generator) in enumerate(zip(contents, generators, strict=True)):
        ground, crop = made_of.drawn_backdrop(GROUNDS.get(split, split), SIZE, generator)
        number = FIRST_ID[split] + i
        for _ in range(LAYOUTS):
            objects = _placed(made_of, split, concepts, generator, longest_side)
            if objects is not None:
                made.append(Scene(number, SIZE, ground, crop, objects))
                break
        else:
            told = f"{len(concepts)} objects of {longest_side} px find no place in {SIZE} px"
            raise ValueError(f"scene {number}: {told}")
    return made


def random_contents(
    concepts: Sequence[int], count: int, seed: int, name: str, fewest: int = 2, most: int = 4
) -> list[list[int]]:
    """`count` lists of `fewest` to `most` different concepts, all drawn uniformly; list i depends
    on (seed, name, i) alone."""
    contents = []
    for generator in generators_of(seed, f"{name} contents", count):
        size = int(generator.integers(fewest, most + 1))
        contents.append(generator.choice(concepts, size, replace=False).tolist())
    return contents


def draw(made_of: Studio, scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene, (size, size, 3) uint8."""
    picture = made_of.backdrop(scene.ground, scene.crop, scene.size)
    for thing in scene.objects:
        sprite = made_of.sprite(thing)
        picture.paste(sprite, thing.box[:2], sprite)
    return np.asarray(picture)


def write_scenes(folder: Path, made_of: Studio, split: str, made: Sequence[Scene]) -> None:
    """Save the pictures of a split below `folder`."""
    pictures = (draw(made_of, scene) for scene in made)
    write_pictures(folder / "scenes" / split, [scene.file for scene in made], pictures)


def masks(made_of: Studio, scene: Scene) -> NDArray[np.bool_]:
    """(objects, size, size): the pixels that belong to each object."""
    found = np.zeros((len(scene.objects), scene.size, scene.size), bool)
    for mask, thing in zip(found, scene.objects, strict=True):
        x, y, width, height = thing.box
        mask[y : y + height, x : x + width] = np.asarray(made_of.sprite(thing))[..., 3] > OPAQUE
    return found


def listed(names: Sequence[str]) -> str:
    """As in "a dog, an apple and cherries"."""
    things = [f"{article(name)} {name}".strip() for name in names]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def article(name: str) -> str:
    """The indefinite article before a name; "" where the name is a plural."""
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return ""
    return "an" if name[0].lower() in "aeiou" else "a"


def from_left(scene: Scene) -> list[SceneObject]:
    """The objects in the order of their boxes' centres, left to right."""
    return sorted(scene.objects, key=lambda thing: 2 * thing.box[0] + thing.box[2])


def some_objects(scene: Scene, generator: np.random.Generator) -> list[SceneObject]:
    """One or more of the objects in random order: those that a caption names."""
    mixed = generator.permutation(len(scene.objects))
    return [scene.objects[i] for i in mixed[: int(generator.integers(1, len(mixed) + 1))]]


def coco_instances(
    made_of: Studio, made: Sequence[Scene], concepts: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """COCO's instances file: images, annotations with boxes and run lengths, categories 1, 2, …"""
    number = {concept: i for i, concept in enumerate(concepts, 1)}
    table = made_of.drawn.concepts
    annotations: list[dict[str, Any]] = []
    for scene in made:
        for thing, mask in zip(scene.objects, masks(made_of, scene), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.id,
                    "category_id": number[thing.concept],
                    "bbox": list(thing.box),
                    "area": int(mask.sum()),
                    "segmentation": run_lengths(mask),
                    "iscrowd": 0,
                }
            )
    images = [{"id": s.id, "file_name": s.file, "width": s.size, "height": s.size} for s in made]
    categories = [
        {"id": number[c], "name": table[c].label, "supercategory": table[c].subgroup}
        for c in concepts
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_captions(
    images: Sequence[int], said: Sequence[tuple[int, str]]
) -> dict[str, list[dict[str, Any]]]:
    """COCO's captions file of these images' ids and of what is `said` of them."""
    annotations = [{"id": i, "image_id": n, "caption": text} for i, (n, text) in enumerate(said)]
    return {"images": [{"id": number} for number in images], "annotations": annotations}


def read_scenes(root: str | Path, split: str) -> list[Scene]:
    """The records of a built split, for builders and scoring code only."""
    path = Path(root) / "secret" / "scene_records.json"
    found = []
    with refusing(f"{path}: damaged; delete {root} and run again"):
        for row in json.loads(path.read_text())[split]:
            things = [SceneObject(**t | {"box": tuple(t["box"])}) for t in row["objects"]]
            found.append(Scene(**row | {"crop": tuple(row["crop"]), "objects": tuple(things)}))
    return found


def attribution(made_of: Studio) -> str:
    """The text of ATTRIBUTION.md beside scenes."""
    told = ["\nThe grounds are cut out of these photographs and scaled.\n"]
    told += [f"- `{p.id}`: {p.credit}, {p.licence}; {p.file}" for p in PHOTOGRAPHS]
    return made_of.drawn.attribution + "\n".join(told) + "\n"


def _build(
    folder: Path,
    seed: int,
    counts: dict[str, int],
    classes: int,
    objects: Sequence[int],
    longest_side: Sequence[int],
) -> None:
    made_of = studio()
    concepts = scene_concepts(made_of.drawn, seed, classes)
    table = made_of.drawn.concepts
    made: dict[str, list[Scene]] = {}
    for split, count in counts.items():
        contents = random_contents(concepts, count, seed, f"scenes {split}", *objects)
        made[split] = make_scenes(made_of, split, contents, seed, "scenes", longest_side)
        write_scenes(folder, made_of, split, made[split])
        coco = coco_instances(made_of, made[split], concepts)
        write_json(folder / f"instances_{split}.json", coco)
        _write_karpathy(folder, split, made[split], table, seed)
    write_json(folder / "captions_train.json", _training_captions(made["train"], table, seed))
    records = {split: [asdict(scene) for scene in rows] for split, rows in made.items()}
    write_json(folder / "secret" / "scene_records.json", records)
    (folder / "ATTRIBUTION.md").write_text(attribution(made_of))


def _placed(
    made_of: Studio,
    split: str,
    concepts: Sequence[int],
    generator: np.random.Generator,
    longest_side: Sequence[int],
) -> tuple[SceneObject, ...] | None:
    """Objects without overlap, or None if one found no place."""
    placed: list[SceneObject] = []
    for concept in concepts:
        drawn = of_split(DRAWN.get(split, split))
        names = [name for name in drawn if made_of.drawn.present[name][concept]]
        if not names:
            raise ValueError(f"no rendering of {split} draws concept {concept}")
        name = one_of(names, generator)
        longest = int(generator.integers(longest_side[0], longest_side[1] + 1))
        rotation = float(round(generator.uniform(-ROTATION, ROTATION), 2))
        thing = SceneObject(concept, name, longest, rotation, (0, 0, 0, 0))
        width, height = made_of.sprite(thing).size
        taken = [other.box for other in placed]
        for _ in range(TRIES if max(width, height) <= SIZE else 0):
            x, y = (int(generator.integers(SIZE - side + 1)) for side in (width, height))
            if not any(
                x < a + w and a < x + width and y < b + h and b < y + height for a, b, w, h in taken
            ):
                placed.append(replace(thing, box=(x, y, width, height)))
                break
        else:
            return None
    return tuple(placed)


def _cut(art: Image.Image) -> Image.Image:
    return art.crop(extent(np.asarray(art)))


def _training_captions(
    made: Sequence[Scene], table: Sequence[Concept], seed: int
) -> list[dict[str, Any]]:
    """{image, caption: three texts, image_id}; each text names some of the objects by synonyms."""
    items = []
    identity = _identities(made)
    for scene, generator in zip(made, generators_of(seed, "captions", len(made)), strict=True):
        texts = []
        for _ in range(CAPTIONS):
            told = some_objects(scene, generator)
            names = [one_of(synonyms(table[thing.concept]), generator) for thing in told]
            texts.append(listed(names))
        image = f"scenes/train/{scene.file}"
        items.append({"image": image, "caption": texts, "image_id": identity[scene.id]})
    return items


def _identities(made: Sequence[Scene]) -> dict[int, int]:
    """Scene's id -> id of the first scene that shows the same concepts: to training they are one
    picture, as all drawings of a concept are among the emoji pairs."""
    first: dict[frozenset[int], int] = {}
    shown = {scene.id: frozenset(thing.concept for thing in scene.objects) for scene in made}
    return {number: first.setdefault(concepts, number) for number, concepts in shown.items()}


def _references(
    scene: Scene, table: Sequence[Concept], generator: np.random.Generator
) -> list[str]:
    """Five descriptions of all objects by five templates; the last two use synonyms."""
    ordered = [table[thing.concept] for thing in from_left(scene)]
    labels = [concept.label for concept in ordered]
    mixed = [ordered[i] for i in generator.permutation(len(ordered))]
    called = [one_of(synonyms(concept), generator) for concept in mixed]
    return [
        listed(labels),
        f"a picture of {listed(labels)}",
        f"from left to right {listed(labels)}",
        f"there is {listed(called)} in the picture",
        f"{NUMBERS[len(called)]} object{'s' if len(called) > 1 else ''}: {', '.join(called)}",
    ]


def _write_karpathy(
    folder: Path, split: str, made: Sequence[Scene], table: Sequence[Concept], seed: int
) -> None:
    generators = generators_of(seed, f"references {split}", len(made))
    identity = _identities(made)
    items, told = [], []
    for scene, generator in zip(made, generators, strict=True):
        image, texts = f"scenes/{split}/{scene.file}", _references(scene, table, generator)
        told += [(scene.id, text) for text in texts]
        if split == "train":
            number = identity[scene.id]
            items += [{"image": image, "caption": text, "image_id": number} for text in texts]
        else:
            items.append({"image": image, "caption": texts, "image_id": scene.id})
    write_json(folder / f"coco_karpathy_{split}.json", items)
    if split != "train":
        truth = coco_captions([scene.id for scene in made], told)
        write_json(folder / f"coco_karpathy_{split}_gt.json", truth)
