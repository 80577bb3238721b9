"""What the teacher and the proposals make of the entries of a block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.pb_ovd.detect.proposals import Proposer
from methods.pb_ovd.detect.teacher import Teacher
from methods.pb_ovd.mentions import Mention, ObjectWords
from methods.pb_ovd.pseudo_boxes import (
    AREA_EXPONENT,
    NO_BOX,
    THRESHOLD,
    best_boxes,
    box_scores,
    normalised,
)
from shared.data.captioned.decoding import Decoded, Picture
from shared.data.captioned.records import Record
from shared.data.captioned.working import Row
from shared.data.views.interface import normalise, planes
from shared.evaluation.attention_maps import Objective
from shared.randomness import key_uniforms, sample_keys


@dataclass(frozen=True)
class Settings:
    """What decides a result of labelling: equal settings, teacher, proposals and input give equal
    bytes. They are those of the official code where it has one (docs/papers/pb_ovd.md, sections 3.1
    to 3.5).

    `official` does what it does and a data set is better without: words that the teacher does not
    know match any such word, an object's map leaks into that of a later one which begins with the
    same word piece, and an object for which no proposal qualifies gets the box 0, 0, 0, 0.
    """

    objective: Objective = "matching"  # of Grad-CAM, see `Teacher`
    layer: int | None = None  # whose attention is looked at, see `looked_at`
    threshold: float = THRESHOLD
    exponent: float = AREA_EXPONENT
    most: int = 100  # proposals of an image, the best of a detector or the first of a file
    every_caption: bool = False  # of an entry with several; else one by lot
    official: bool = False
    batch_size: int = 16
    seed: int = 0
    limit: int | None = None  # entries that are read
    max_pixels: int = 1 << 26  # of an image
    licence: str = ""  # of the data, as the user states it


class Asked(NamedTuple):
    """A caption with objects: its entry's row, the image, its tokens and its mentions."""

    row: Row
    record: Record
    picture: Picture
    tokens: list[int]
    mentions: list[Mention]


class Labeller:
    """Boxes for the objects that captions mention."""

    def __init__(
        self, teacher: Teacher, words: ObjectWords, proposer: Proposer, settings: Settings
    ) -> None:
        self.teacher, self.words, self.proposer = teacher, words, proposer
        self.settings = settings

    def __call__(self, decoded: Decoded) -> list[Row]:
        """Return of each entry {key, fault} or {key, sha256, size, mentions: how many, objects:
        [name, box, score] of each that has a box}."""
        rows: list[Row] = []
        asked: list[Asked] = []
        for record, picture in zip(decoded.block.records, decoded.pictures, strict=True):
            rows.append({"key": record.key})
            if isinstance(picture, str):
                rows[-1]["fault"] = picture
                continue
            about = {"sha256": picture.sha256, "size": list(picture.size)}
            rows[-1] |= {**about, "mentions": 0, "objects": []}
            for tokens in self.teacher.tokens(self._captions(record)):
                if len(tokens) > self.teacher.positions:
                    limits = f"{len(tokens)} tokens, the teacher reads {self.teacher.positions}"
                    rows[-1]["fault"] = f"too long: a caption of {limits}"
                elif mentions := self.words.mentions(tokens):
                    rows[-1]["mentions"] += len(mentions)
                    asked.append(Asked(rows[-1], record, picture, tokens, mentions))
        size = self.settings.batch_size
        for first in range(0, len(asked), size):
            self._place(asked[first : first + size])
        return rows

    def _captions(self, record: Record) -> Sequence[str]:
        """The captions of an entry that count: one by lot, or all of them."""
        if self.settings.every_caption or len(record.texts) < 2:
            return record.texts
        draw = draws(self.settings.seed, record.key, "caption", 1)[0]
        return [record.texts[int(draw * len(record.texts))]]

    def _place(self, asked: Sequence[Asked]) -> None:
        """Write the objects of captions into their rows."""
        images = {id(one.row): one for one in asked}  # an entry's captions share its image
        kept = list(images.values())
        found = self.proposer.propose([a.record for a in kept], [a.picture for a in kept])
        boxes: dict[int, Tensor] = {}
        for one, proposals in zip(kept, found, strict=True):
            if isinstance(proposals, str):
                one.row["fault"] = proposals
            else:
                boxes[id(one.row)] = proposals
        asked = [one for one in asked if id(one.row) in boxes]
        if not asked:
            return
        places = {row: place for place, row in enumerate(boxes)}
        side = self.teacher.size
        seen = np.stack([images[row].picture.views[side] for row in boxes])
        views = normalise(planes(seen), self.teacher.mean, self.teacher.std)
        maps = self.teacher.maps(
            views,
            [one.tokens for one in asked],
            [places[id(one.row)] for one in asked],
            [[(mention.left, mention.right) for mention in one.mentions] for one in asked],
            accumulate=self.settings.official,
        )
        for one, of_objects in zip(asked, maps, strict=True):
            one.row["objects"] += self._objects(one, of_objects, boxes[id(one.row)])

    def _objects(self, one: Asked, maps: Tensor, boxes: Tensor) -> list[list[Any]]:
        settings = self.settings
        placed = normalised(maps, one.picture.size, settings.threshold)
        chosen, scores = best_boxes(box_scores(placed, boxes, settings.exponent), boxes)
        names = [mention.name for mention in one.mentions]
        objects = zip(names, chosen.tolist(), scores.tolist(), strict=True)
        return [list(o) for o in objects if settings.official or o[2] != NO_BOX]


def draws(seed: int, key: str, purpose: str, count: int) -> Sequence[float]:
    """Numbers in [0, 1) that depend on an entry's key alone, beside the seed and the purpose."""
    keys = sample_keys(seed, 0, np.array([int(key, 16)], np.uint64), purpose)
    return torch.from_numpy(key_uniforms(keys, count)[0]).tolist()
