"""A tiny artificial set of pictures with texts in ALBEF's formats, for tests and smoke runs.

A picture shows one coloured shape above another, so that a network can learn to name them in a few
steps and mirroring changes no truth. Proves nothing about images.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.miniatures.building import (
    SPECIAL_TOKENS,
    Provenance,
    build_once,
    write_json,
    write_lines,
    write_shards,
)

COLOURS = {"red": (205, 40, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "black": (20,) * 3}
SHAPES = ("circle", "square", "triangle")
TEXT_KEYS = {"caption", "question", "answer", "sentence", "text"}
SHARDS = 2
SMALLEST = 16  # px
VERSION = 1  # raise it with any change of the pictures or texts

Item = dict[str, Any]
Named = tuple[str, str]  # colour and shape
OBJECTS: tuple[Named, ...] = tuple(product(COLOURS, SHAPES))


@dataclass(frozen=True)
class Picture:
    """What is drawn: `boxes` [x, y, width, height] of the upper and the lower object."""

    id: int
    upper: Named
    lower: Named
    boxes: tuple[list[int], list[int]]
    ground: tuple[int, int, int]
    size: int

    @classmethod
    def placed(
        cls, number: int, upper: Named, lower: Named, size: int, generator: np.random.Generator
    ) -> "Picture":
        """Both objects at columns, and on a light ground, that are drawn."""
        side = round(0.36 * size)
        columns = generator.integers(1, size - side, 2).tolist()
        rows = (size // 2 - side - 1, size // 2 + 1)
        first, second = ([x, y, side, side] for x, y in zip(columns, rows, strict=True))
        red, green, blue = generator.integers(215, 256, 3).tolist()
        return cls(number, upper, lower, (first, second), (red, green, blue), size)

    @property
    def file(self) -> str:
        return f"images/{self.id:012}.png"

    @property
    def captions(self) -> list[str]:
        upper, lower = " ".join(self.upper), " ".join(self.lower)
        return [f"a {upper} above a {lower}", f"a {lower} below a {upper}"]

    def absent(self, number: int) -> Named:
        """One of the objects that are not in the picture."""
        others = [named for named in OBJECTS if named not in (self.upper, self.lower)]
        return others[number % len(others)]

    def pixels(self) -> Image.Image:
        image = Image.new("RGB", (self.size, self.size), self.ground)
        pen = ImageDraw.Draw(image)
        objects = zip((self.upper, self.lower), self.boxes, strict=True)
        for (colour, shape), (x, y, width, height) in objects:
            corners = (x, y, x + width - 1, y + height - 1)
            if shape == "circle":
                pen.ellipse(corners, COLOURS[colour])
            elif shape == "square":
                pen.rectangle(corners, COLOURS[colour])
            else:
                top = (x + width / 2 - 0.5, y)
                pen.polygon([top, (x, corners[3]), corners[2:]], COLOURS[colour])
        return image

    def annotations(self) -> list[Item]:
        """The upper and the lower object as in COCO's instances."""
        rows = enumerate(zip((self.upper, self.lower), self.boxes, strict=True))
        return [
            {
                "id": 2 * self.id + place,
                "image_id": self.id,
                "category_id": 1 + SHAPES.index(shape),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for place, ((_, shape), box) in rows
        ]


def pairs(
    root: str | Path, train: int = 64, test: int = 16, image_size: int = 32, seed: int = 0
) -> Provenance:
    """Write the set into `root`, unless it is there, and return its provenance.

    - `pairs_{train,val,test}.json`: two captions a picture, in training one entry for each;
      `shards/pairs-*.tar`: the training pairs once more, as webdataset; `vocab.txt`;
    - `vqa_{train,val,test}.json`, the test with answers, too, `vg_qa.json`, `answer_list.json`;
    - `nlvr_{train,dev,test}.json`; `ve_{train,dev,test}.json`, whose pictures are .jpg files;
    - `refcoco+_{train,val,test}.json`, `dets.json`, `refcoco+/refs(unc).p` and `instances.json`.

    Paths of pictures are relative to `root`, those of `ve_*.json` to `root/images`. Validation has
    `test` pictures as well.
    """
    if min(train, test) < 2 or image_size < SMALLEST:
        given = f"train={train}, test={test}, image_size={image_size}"
        raise ValueError(f"{given}: at least two pictures of {SMALLEST} px are needed")
    splits = _pictures({"train": train, "val": test, "test": test}, image_size, seed)

    def build(folder: Path) -> None:
        references = _references(splits)
        texts = _texts(splits, references, seed)
        for name, content in texts.items():
            write_json(folder / name, content, indent=1)
        write_lines(folder / "vocab.txt", vocabulary(texts))
        (folder / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
        (folder / "images").mkdir()
        for picture in chain(*splits.values()):
            picture.pixels().save(folder / picture.file)
            picture.pixels().save((folder / picture.file).with_suffix(".jpg"), quality=95)
        samples = []
        for entry in texts["pairs_train.json"]:
            about = {"caption": entry["caption"], "image_id": entry["image_id"]}
            sample = {"png": (folder / entry["image"]).read_bytes()}
            sample |= {"txt": entry["caption"].encode(), "json": json.dumps(about).encode()}
            samples.append(sample)
        write_shards(folder / "shards", "pairs", SHARDS, samples)

    recipe = {"train": train, "test": test, "image_size": image_size, "seed": seed}
    files = build_once(root, "synthetic-pairs", {"version": VERSION, **recipe}, build)
    return {"synthetic-pairs": {"files": files, "licence": "CC0-1.0"}}


def vocabulary(files: Mapping[str, Any]) -> list[str]:
    """The special tokens and all words of the files' texts, sorted."""
    texts = list(files["answer_list.json"])
    for content in files.values():
        for entry in content if isinstance(content, list) else []:
            for key in TEXT_KEYS & entry.keys() if isinstance(entry, dict) else ():
                texts += [entry[key]] if isinstance(entry[key], str) else entry[key]
    words = {word for text in texts for word in text.lower().replace("?", "").split()}
    return [*SPECIAL_TOKENS, *sorted(words)]


def reference(number: int, annotation: Item, file_name: str, text: str, split: str) -> Item:
    """An entry of REFER's list: one sentence about an annotation of instances.json."""
    sentence = {"tokens": text.split(), "raw": text, "sent": text, "sent_id": number}
    return {
        "ref_id": number,
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "split": split,
        "file_name": file_name,
        "sent_ids": [number],
        "sentences": [sentence],
    }


def _pictures(counts: Mapping[str, int], size: int, seed: int) -> dict[str, list[Picture]]:
    """Pictures of all splits; none shows what another shows while there are enough contents."""
    generator = np.random.default_rng(seed)
    contents = list(permutations(OBJECTS, 2))
    order = generator.permutation(len(contents))
    splits: dict[str, list[Picture]] = {}
    number = 0
    for split, count in counts.items():
        splits[split] = []
        for _ in range(count):
            upper, lower = contents[order[number % len(contents)]]
            splits[split].append(Picture.placed(number, upper, lower, size, generator))
            number += 1
    return splits


def _references(splits: Mapping[str, Sequence[Picture]]) -> list[Item]:
    """One reference for each object; test pictures are in testA and testB by turns."""
    found = []
    for split, pictures in splits.items():
        for picture in pictures:
            objects = zip((picture.upper, picture.lower), picture.annotations(), strict=True)
            for named, thing in objects:
                # A text of its own for each: pickle writes one that is met again as a reference.
                part = f"test{'AB'[picture.id % 2]}" if split == "test" else split
                text = f"the {' '.join(named)}"
                found.append(reference(thing["id"], thing, picture.file, text, part))
    return found


def _texts(
    splits: Mapping[str, Sequence[Picture]], references: Sequence[Item], seed: int
) -> dict[str, Any]:
    """The JSON files by name."""
    everything = list(chain(*splits.values()))
    generator = np.random.default_rng([seed, 1])
    files: dict[str, Any] = {
        "vg_qa.json": [
            {
                "dataset": "vg",
                "image": picture.file,
                "question": "What is below?",
                "answer": picture.lower[1],
                "question_id": 10_000_000 + picture.id,
            }
            for picture in splits["train"]
        ],
        "answer_list.json": [*COLOURS, *SHAPES, "yes", "no"],
        "dets.json": {str(picture.id): _proposals(picture, generator) for picture in everything},
        "refcoco+/instances.json": {
            "images": [
                {"id": p.id, "file_name": p.file, "width": p.size, "height": p.size}
                for p in everything
            ],
            "annotations": [item for picture in everything for item in picture.annotations()],
            "categories": [
                {"id": number, "name": shape, "supercategory": "shape"}
                for number, shape in enumerate(SHAPES, 1)
            ],
        },
    }
    for split, pictures in splits.items():
        dev = "dev" if split == "val" else split
        pairs: list[Item] = [{"image": p.file, "caption": p.captions} for p in pictures]
        if split == "train":
            pairs = [
                {"image": picture.file, "caption": caption, "image_id": picture.id}
                for picture in pictures
                for caption in picture.captions
            ]
        files[f"pairs_{split}.json"] = pairs
        files[f"vqa_{split}.json"] = [_question(p, i) for i, p in enumerate(pictures)]
        files[f"nlvr_{dev}.json"] = [_statement(pictures, i) for i in range(len(pictures))]
        files[f"ve_{dev}.json"] = [_sentence(p, i) for i, p in enumerate(pictures)]
        files[f"refcoco+_{split}.json"] = [
            {"image": r["file_name"], "text": r["sentences"][0]["sent"], "ref_id": r["ref_id"]}
            for r in references
            if r["split"].startswith(split)
        ]
    return files


def _question(picture: Picture, number: int) -> Item:
    """By turns of three kinds; every other one is disputed by two of ten people."""
    wanted = picture.upper if number % 6 < 3 else picture.absent(number)
    yes_no = ("yes", "no") if wanted == picture.upper else ("no", "yes")
    text, answer, other = [
        ("What colour is above?", picture.upper[0], picture.lower[0]),
        ("What shape is above?", picture.upper[1], picture.lower[1]),
        (f"Is there a {' '.join(wanted)}?", *yes_no),
    ][number % 3]
    disputed = 2 * (number % 2)
    about = {"dataset": "vqa", "image": picture.file, "question": text, "question_id": picture.id}
    return about | {"answer": [answer] * (10 - disputed) + [other] * disputed}


def _statement(pictures: Sequence[Picture], number: int) -> Item:
    """About the picture and its successor: by turns true and false, of the left and the right."""
    left, right = pictures[number], pictures[(number + 1) % len(pictures)]
    side, picture = ("left", left) if number % 4 < 2 else ("right", right)
    true = number % 2 == 0
    named = picture.lower if true else picture.absent(number)
    text = f"The {side} picture shows a {' '.join(named)}"
    return {"images": [left.file, right.file], "sentence": text, "label": str(true)}


def _sentence(picture: Picture, number: int) -> Item:
    label, sentence = [
        ("entailment", f"There is a {' '.join(picture.upper)}"),
        ("neutral", f"The {picture.upper[1]} is old"),
        ("contradiction", f"There is a {' '.join(picture.absent(number))}"),
    ][number % 3]
    return {"image": Path(picture.file).stem, "sentence": sentence, "label": label}


def _proposals(picture: Picture, generator: np.random.Generator) -> list[list[float]]:
    """The true boxes, moved a little, and two others."""
    side = picture.boxes[0][2]
    wrong = generator.uniform(0, picture.size - side, (2, 2)).round(1).tolist()
    moved = [[x + 0.5, y - 0.5, w, h] for x, y, w, h in picture.boxes]
    return moved + [[x, y, side, side] for x, y in wrong]
