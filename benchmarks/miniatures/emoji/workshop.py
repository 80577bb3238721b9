"""Where sets derived from scenes are made: scenes to order, files, and what one gets blindly."""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.miniatures.building import build_once
from benchmarks.miniatures.emoji import backgrounds
from benchmarks.miniatures.emoji.naming import GROUNDS, Ground, Noun, nouns
from benchmarks.miniatures.emoji.packages import LICENCE, RENDERINGS
from benchmarks.miniatures.emoji.pairs import common_concepts, synonyms
from benchmarks.miniatures.emoji.questions import Contents, Picture, Thing, draw_single
from benchmarks.miniatures.emoji.scenes import (
    Scene,
    Studio,
    draw,
    file_name,
    layout_recipe,
    make_scenes,
    scene_concepts,
    studio,
)

Provenance = dict[str, dict[str, Any]]
Told = tuple[str, str, str]  # family, text, answer
VERSION = 1  # raise it with any change of the derived sets
ARTISTS = {"train": "train", "vg": "train", "val": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Workshop:
    """Makes one set. `counts`: split -> scenes or pairs of them; `pool`: its concepts by id;
    `objects`: fewest and most of a scene; `longest_side`: of an object, from and to, in px."""

    folder: Path
    name: str
    seed: int
    counts: Mapping[str, int]
    made_of: Studio
    pool: Mapping[int, Noun]
    objects: Sequence[int]
    longest_side: Sequence[int]

    @property
    def nouns(self) -> list[Noun]:
        return list(self.pool.values())

    def generators(self, purpose: str, count: int) -> list[np.random.Generator]:
        """One for each of `count` things; the first ones don't depend on how many there are."""
        root = np.random.SeedSequence([self.seed, zlib.crc32(f"{self.name} {purpose}".encode())])
        return [np.random.default_rng(child) for child in root.spawn(count)]

    def generator(self, purpose: str) -> np.random.Generator:
        return self.generators(purpose, 1)[0]

    def scenes(
        self, split: str, contents: Iterable[Contents], first_id: int | None = None
    ) -> list[Scene]:
        """A scene for each image of the contents.

        None has a ground that shows something of what is named: such a scene is laid out again.
        """
        asked = [(image, those.named) for those in contents for image in those.images]
        concepts = [[noun.concept for noun in image] for image, _ in asked]
        name, artists = f"{self.name} {split}", ARTISTS[split]
        layout: Any = {"longest_side": self.longest_side}
        made = make_scenes(
            self.made_of, artists, concepts, self.seed, name, first_id=first_id, **layout
        )
        attempt = 0
        while unclear := [i for i, scene in enumerate(made) if _shows(scene.ground, asked[i][1])]:
            attempt += 1
            again = [concepts[i] for i in unclear]
            others = make_scenes(
                self.made_of, artists, again, self.seed, f"{name}, attempt {attempt}", **layout
            )
            for i, scene in zip(unclear, others, strict=True):
                made[i] = replace(scene, id=made[i].id)
        return made

    def random_scenes(self, split: str, first_id: int | None = None) -> list[Scene]:
        """Of concepts that one can tell apart."""
        generators = self.generators(f"contents {split}", self.counts[split])
        contents = [draw_single(self.nouns, g, self.objects) for g in generators]
        return self.scenes(split, contents, first_id)

    def picture(self, scene: Scene) -> Picture:
        things = [Thing(self.pool[thing.concept], thing.box) for thing in scene.objects]
        return Picture(tuple(things), scene.ground, scene.size)

    def save_pictures(self, split: str, scenes: Iterable[Scene]) -> list[str]:
        """Write `images/<split>/<id>.png`; returns these names."""
        (self.folder / "images" / split).mkdir(parents=True)
        names = []
        for scene in scenes:
            names.append(f"images/{split}/{file_name(scene)}")
            picture = Image.fromarray(draw(self.made_of, scene))
            picture.save(self.folder / names[-1], compress_level=1)
        return names

    def write(self, name: str, content: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    def write_records(self, made: Mapping[str, Sequence[Scene]]) -> None:
        """The truth, for builders and scoring code only; `read_scenes` reads it."""
        records = {split: [asdict(scene) for scene in scenes] for split, scenes in made.items()}
        self.write("secret/scene_records.json", records)

    def write_sheet(self, cells: Sequence[tuple[Sequence[Scene], Sequence[str]]]) -> None:
        drawn = [([draw(self.made_of, scene) for scene in those], told) for those, told in cells]
        text_sheet(drawn).save(self.folder / f"contact_{self.name}.png")


def build_set(
    root: str | Path,
    name: str,
    seed: int,
    counts: Mapping[str, int],
    classes: int,
    layout: tuple[Sequence[int], Sequence[int]],
    write: Callable[[Workshop], None],
) -> Provenance:
    """Let `write` make a set in `root`, unless it is there; returns its provenance.

    `layout`: `objects` and `longest_side` of a `Workshop`.
    """
    recipe = {
        "version": VERSION,
        "seed": seed,
        "counts": dict(counts),
        "classes": classes,
        **layout_recipe(*layout),
        "packages": {r.id: f"{r.package.name}@{r.package.version}" for r in RENDERINGS},
        "photographs": {p.id: p.sha256 for p in backgrounds.PHOTOGRAPHS},
    }

    def build(folder: Path) -> None:
        made_of = studio()
        # Of the scenes' concepts those that the small set of pairs names, for its vocabulary.
        known = set(common_concepts(made_of.drawn, seed))
        chosen = [
            made_of.drawn.concepts[i]
            for i in scene_concepts(made_of.drawn, seed, classes)
            if i in known
        ]
        pool = nouns(chosen, synonyms)
        write(Workshop(folder, name, seed, counts, made_of, pool, *layout))
        text = made_of.drawn.attribution + backgrounds.attribution()
        (folder / "ATTRIBUTION.md").write_text(text)

    files = build_once(Path(root), name, recipe, build)
    art = {
        r.id: {"files": {r.package.archive: r.package.sha256}, "licence": r.licence}
        for r in RENDERINGS
    }
    photographs = {
        p.id: {"files": {p.file: p.sha256}, "licence": p.licence} for p in backgrounds.PHOTOGRAPHS
    }
    return {**art, **photographs, f"emoji-{name}": {"files": files, "licence": LICENCE}}


def blind_accuracies(train: Sequence[Told], test: Sequence[Told]) -> dict[str, float]:
    """Share of the test answers, in percent, that one gets right without any picture.

    `majority`: by always giving the most frequent training answer; `family`: that of the family;
    `text`: that of the same text, or of the family where training lacks the text. Among equally
    frequent answers the first in the alphabet.
    """
    guesses = {"": _most_frequent((("", answer) for _, _, answer in train))}
    guesses["family"] = _most_frequent((family, answer) for family, _, answer in train)
    guesses["text"] = _most_frequent((text, answer) for _, text, answer in train)
    found = {
        "majority": [guesses[""].get("") == answer for _, _, answer in test],
        "family": [guesses["family"].get(family) == answer for family, _, answer in test],
        "text": [
            guesses["text"].get(text, guesses["family"].get(family)) == answer
            for family, text, answer in test
        ],
    }
    return {name: round(100 * float(np.mean(right)), 2) for name, right in found.items()}


def text_sheet(
    cells: Sequence[tuple[Sequence[NDArray[np.uint8]], Sequence[str]]], width: int = 1250
) -> Image.Image:
    """Pictures side by side at twice their size with lines of text below, cell by cell."""
    side = 2 * len(cells[0][0][0]) + 4
    cell = max(side * max(len(pictures) for pictures, _ in cells), 200) + 8
    height = side + 12 * max(len(lines) for _, lines in cells) + 8
    across = width // cell
    sheet = Image.new("RGB", (across * cell, -(-len(cells) // across) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (pictures, lines) in enumerate(cells):
        left, top = i % across * cell, i // across * height
        for place, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((side - 4, side - 4))
            sheet.paste(enlarged, (left + place * side, top))
        for row, line in enumerate(lines):
            pen.text((left + 2, top + side - 2 + 12 * row), line, fill="black")
    return sheet


def _shows(ground: str, named: Iterable[Noun]) -> bool:
    """Whether the photograph itself could be called by one of the names."""
    names = GROUNDS.get(ground, Ground()).names
    return not names.isdisjoint(noun.name for noun in named)


def _most_frequent(told: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most frequent answer to each key, of (key, answer)."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, answer in told:
        counts[key][answer] += 1
    return {
        key: min(answers.items(), key=lambda item: (-item[1], item[0]))[0]
        for key, answers in counts.items()
    }
