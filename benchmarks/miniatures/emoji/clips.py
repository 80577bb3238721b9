"""Clips of drawings that move over a still, pale photograph, in the files that ALPRO and BLIP read.

A clip has two lanes, one above the other or side by side, each with a drawing that moves along it,
or stands still; one clip in eight leaves a lane empty. In the web's clips the caption names one of
the two, so that the other is known from the corpus alone. Six artists draw for training, a seventh
for validation, an eighth, on photographs of its own, for the test (docs/papers/alpro.md, section
11). `clips` is the entry, for use as a `source` of a config.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generators_of,
    one_of,
    write_json,
    write_lines,
    write_pictures,
    write_rows,
    write_video,
)
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import of_split
from benchmarks.miniatures.emoji.pairs import synonyms, vocabulary
from benchmarks.miniatures.emoji.questions import NO_NOUNS
from benchmarks.miniatures.emoji.scenes import (
    MADE_OF,
    SceneObject,
    Studio,
    article,
    attribution,
    scene_concepts,
    scene_provenance,
    studio,
)
from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.zoo import PREFIX, checksums

VERSION = 3  # raise it with any change of the clips or texts
NAME = "emoji-clips"
SIZE, FRAMES = 64, 16
CLASSES = 24  # small networks learn as many names in the time, 120 hardly
LONGEST_SIDE = (24, 30)  # px
PALE = 0.6  # how white photographs are: the zoo's vision tower has seen drawings on plain grounds
PATH = 18  # px from the first frame to the last one; less is too little to be learned
MARGIN = 9  # px from the border to the middle of the path at least
JITTER = 3  # px across the lane
EMPTY = 1 / 8  # of clips have one drawing
# Of the lanes: their places, and the ways along them with their signs.
AXES = {
    "across": (("top", "bottom"), {"left": -1, "right": 1, "nowhere": 0}),
    "down": (("left", "right"), {"up": -1, "down": 1, "nowhere": 0}),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
PROMPT_WORDS = "a the one of good . video footage portrait photo picture moving standing still"
TOWERS = "zoo:albef-emoji"  # what holds the vocabulary of the towers that training starts from
Item = dict[str, Any]


@dataclass(frozen=True)
class Mover:
    """One drawing: whose, its longest side and its extent in px, its place, its way, and the corner
    that it has in each frame."""

    concept: int
    rendering: str
    longest: int
    place: str
    way: str
    extent: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Clip:
    """What a clip shows; `frames` draws it. `crop`: left, top and side of the photograph's part."""

    name: str
    ground: str
    crop: tuple[int, int, int]
    places: tuple[str, str]
    movers: tuple[Mover, ...]

    def frames(self, made_of: Studio) -> NDArray[np.uint8]:
        """(F, H, W, 3)."""
        photograph = made_of.backdrop(self.ground, self.crop, SIZE)
        ground = Image.blend(photograph, Image.new("RGB", photograph.size, "white"), PALE)
        sprites = [made_of.sprite(_still(mover)) for mover in self.movers]
        drawn = []
        for number in range(FRAMES):
            frame = ground.copy()
            for mover, sprite in zip(self.movers, sprites, strict=True):
                frame.paste(sprite, mover.corners[number], sprite)
            drawn.append(np.asarray(frame))
        return np.stack(drawn)


def clips(
    root: str | Path,
    seed: int = 0,
    web: int = 4000,
    stills: int = 1000,
    tune: int = 800,
    val: int = 300,
    test: int = 300,
    classes: int = CLASSES,
) -> Provenance:
    """Make the clips present in `root`.

    - `videos/<name>.mp4`, 64 px, 16 frames; `stills/<name>.png`, single frames of other clips;
    - `webvid2m/{train,val}.csv` with WebVid's columns, `cc3m/cc3m.json`, to pre-train on;
    - `msrvtt_ret/txt/{train,val,test}.jsonl`, full captions of the clips to fine-tune on;
    - `msrvtt_ret/txt/motion_{val,test}.jsonl`, each of their clips where something moves and the
      same clip backwards, with each other's captions as `hard`: motion alone tells them apart;
    - `msrvtt_qa/txt/{train,val,test}.jsonl` with `train_ans2label.json`, questions about them;
    - `vocab.txt`, the zoo's words and behind them those that only clips need, and `unigrams.txt`,
      the names that captions use, the most frequent ones first;
    - `secret/clip_records.json`, what is where, which only builders and scoring code may read.

    Of `classes` names those are left out that name no thing.
    """
    counts = {"web": web, "still": stills, "tune": tune, "val": val, "test": test}
    recipe: Item = {"version": VERSION, "seed": seed, "counts": counts, "classes": classes}
    recipe |= MADE_OF | {"towers": checksums()[TOWERS.removeprefix(PREFIX)]}

    def build(folder: Path) -> None:
        _build(folder, studio(), seed, counts, classes)

    return scene_provenance(NAME, build_once(Path(root), NAME, recipe, build))


def make_clips(
    made_of: Studio, kind: str, count: int, concepts: Sequence[int], seed: int
) -> list[Clip]:
    """Clip i depends on (seed, kind, i) and the concepts alone. Those of every kind but "val" and
    "test" are by the artists of training."""
    split = kind if kind in ("val", "test") else "train"
    made = []
    for number, generator in enumerate(generators_of(seed, f"clips {kind}", count)):
        ground, crop = made_of.drawn_backdrop(split, SIZE, generator)
        axis = one_of(list(AXES), generator)
        places, ways = AXES[axis]
        shown = generator.choice(concepts, 2, replace=False).tolist()
        movers = [
            _mover(made_of, split, concept, axis, lane, one_of(list(ways), generator), generator)
            for lane, concept in enumerate(shown)
        ]
        if generator.random() < EMPTY:
            movers.pop(int(generator.integers(2)))
        made.append(Clip(f"{kind}{number:05}", ground, crop, places, tuple(movers)))
    return made


def web_caption(clip: Clip, table: Sequence[Concept], generator: np.random.Generator) -> str:
    """A text that names one of the movers by any synonym, half of the time with its way."""
    mover = one_of(clip.movers, generator)
    name = one_of(synonyms(table[mover.concept]), generator)
    return f"{name} {_moving(mover)}" if generator.random() < 0.5 else name


def still_caption(clip: Clip, table: Sequence[Concept], generator: np.random.Generator) -> str:
    """A text that names one of the movers by any synonym: a single frame tells no way."""
    return one_of(synonyms(table[one_of(clip.movers, generator).concept]), generator)


def full_caption(clip: Clip, table: Sequence[Concept], generator: np.random.Generator) -> str:
    """A text that names all movers, in any order, with their ways."""
    told = []
    for place in generator.permutation(len(clip.movers)):
        mover = clip.movers[place]
        name = table[mover.concept].label
        told.append(f"{article(name)} {name} {_moving(mover)}".strip())
    return " and ".join(told)


def backwards(clip: Clip) -> Clip:
    """The same frames in the other order."""
    turned = [
        replace(m, way=OPPOSITE.get(m.way, m.way), corners=m.corners[::-1]) for m in clip.movers
    ]
    return replace(clip, name=f"{clip.name}r", movers=tuple(turned))


def questions(clip: Clip, table: Sequence[Concept], generator: np.random.Generator) -> list[Item]:
    """What is at one of the places, which way one of the movers goes, and where it is."""
    at = {mover.place: table[mover.concept].label for mover in clip.movers}
    place, mover = one_of(clip.places, generator), one_of(clip.movers, generator)
    name = table[mover.concept].label
    rows = [
        (f"what is at the {place}?", at.get(place, "nothing"), "what"),
        (f"which way does the {name} move?", mover.way, "how"),
        (f"where is the {name}?", mover.place, "where"),
    ]
    return [
        {"question": text, "answer": answer, "video_id": clip.name, "answer_type": kind}
        for text, answer, kind in rows
    ]


def _mover(
    made_of: Studio,
    split: str,
    concept: int,
    axis: str,
    lane: int,
    way: str,
    generator: np.random.Generator,
) -> Mover:
    """A mover whose path lies anywhere along its lane, so that no single frame tells its way but
    near the border, where a part of it may be outside."""
    names = [name for name in of_split(split) if made_of.drawn.present[name][concept]]
    longest = int(generator.integers(LONGEST_SIDE[0], LONGEST_SIDE[1] + 1))
    middle = generator.uniform(MARGIN, SIZE - MARGIN)
    across = SIZE * (1 + 2 * lane) / 4 + generator.uniform(-JITTER, JITTER)
    steps = AXES[axis][1][way] * PATH * (np.arange(FRAMES) / (FRAMES - 1) - 0.5)
    along = middle + steps
    centres = np.stack([along, np.full(FRAMES, across)], 1)[:, :: 1 if axis == "across" else -1]
    still = Mover(concept, one_of(names, generator), longest, AXES[axis][0][lane], way, (0, 0), ())
    extent = made_of.sprite(_still(still)).size
    corners = np.rint(centres - np.array(extent) / 2).astype(int).tolist()
    return replace(still, extent=extent, corners=tuple((left, top) for left, top in corners))


def _still(mover: Mover) -> SceneObject:
    return SceneObject(mover.concept, mover.rendering, mover.longest, 0.0, (0, 0, 0, 0))


def _moving(mover: Mover) -> str:
    return "standing still" if mover.way == "nowhere" else f"moving {mover.way}"


def _build(
    folder: Path, made_of: Studio, seed: int, counts: Mapping[str, int], classes: int
) -> None:
    table = made_of.drawn.concepts
    concepts = scene_concepts(made_of.drawn, seed, classes)
    concepts = [c for c in concepts if table[c].label not in NO_NOUNS.split()]
    made = {kind: make_clips(made_of, kind, n, concepts, seed) for kind, n in counts.items()}
    turned = {kind: [backwards(clip) for clip in made[kind]] for kind in ("val", "test")}

    def told(kind: str, what: Callable[..., Any], of: Mapping[str, Any] = made) -> list[Any]:
        """What `what` says of each clip of a kind."""
        generators = generators_of(seed, f"{what.__name__} {kind}", counts[kind])
        rows = zip(of[kind], generators, strict=True)
        return [what(clip, table, generator) for clip, generator in rows]

    captions = {kind: told(kind, web_caption) for kind in ("web", "val")}
    captions["still"] = told("still", still_caption)
    full = {kind: told(kind, full_caption) for kind in ("tune", "val", "test")}
    asked = {kind: list(chain(*told(kind, questions))) for kind in full}
    for clip in chain(*(clips_of for kind, clips_of in made.items() if kind != "still")):
        write_video(folder / "videos" / f"{clip.name}.mp4", clip.frames(made_of))
    stills = [f"stills/{clip.name}.png" for clip in made["still"]]
    middle = (clip.frames(made_of)[FRAMES // 2] for clip in made["still"])
    write_pictures(folder / "cc3m", stills, middle)
    pairs = zip(stills, captions["still"], strict=True)
    write_json(folder / "cc3m" / "cc3m.json", [{"image": n, "caption": t} for n, t in pairs])
    for kind, split in {"web": "train", "val": "val"}.items():
        pairs = zip((clip.name for clip in made[kind]), captions[kind], strict=True)
        lines = (f"{name},{text}" for name, text in pairs)
        write_lines(folder / "webvid2m" / f"{split}.csv", ["videoid,name", *lines])
    for kind, split in {"tune": "train", "val": "val", "test": "test"}.items():
        pairs = zip((clip.name for clip in made[kind]), full[kind], strict=True)
        rows = [{"clip_name": name, "caption": text} for name, text in pairs]
        write_rows(folder / "msrvtt_ret" / "txt" / f"{split}.jsonl", rows)
        write_rows(folder / "msrvtt_qa" / "txt" / f"{split}.jsonl", asked[kind])
    for kind, clips_of in turned.items():
        rows = []
        both = zip(made[kind], clips_of, full[kind], told(kind, full_caption, turned), strict=True)
        for clip, other, text, other_text in both:
            if text != other_text:  # something moves
                rows.append({"clip_name": clip.name, "caption": text, "hard": other_text})
                rows.append({"clip_name": other.name, "caption": other_text, "hard": text})
                write_video(folder / "videos" / f"{other.name}.mp4", other.frames(made_of))
        write_rows(folder / "msrvtt_ret" / "txt" / f"motion_{kind}.jsonl", rows)
    answers = sorted({item["answer"] for item in asked["tune"]})
    numbered = {text: number for number, text in enumerate(answers)}
    write_json(folder / "msrvtt_qa" / "txt" / "train_ans2label.json", numbered)
    texts = [*captions["web"], *captions["still"], *full["tune"]]
    texts += [item["question"] for item in asked["tune"]]
    _write_words(folder, texts, [synonyms(table[c]) for c in concepts])
    records = {kind: [asdict(clip) for clip in rows] for kind, rows in made.items()}
    names = {str(c): synonyms(table[c]) for c in concepts}
    write_json(folder / "secret" / "clip_records.json", {"names": names, "clips": records})
    (folder / "ATTRIBUTION.md").write_text(attribution(made_of))


def _write_words(folder: Path, texts: Sequence[str], names: Iterable[Sequence[str]]) -> None:
    """The vocabulary, and the names of one word with their counts in the texts."""
    known = {name.lower() for several in names for name in several if name.isalpha()}
    counts = Counter(word for text in texts for word in text.lower().split() if word in known)
    ordered = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    write_lines(folder / "unigrams.txt", (f"{name} {count}" for name, count in ordered))
    towers = load_checkpoint(TOWERS)["vocabulary"]
    own = vocabulary([*texts, PROMPT_WORDS], lambda text: text)
    write_lines(folder / "vocab.txt", [*towers, *(word for word in own if word not in towers)])
