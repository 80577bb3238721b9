"""Emoji with captions in the pair files that ALBEF and BLIP read.

A caption is one of a concept's names: its label, an alias, the label with two tags, the sub-group
with the label. Six artists' drawings are for training, a seventh's for validation, an eighth's for
the test. `pairs` and `pair_shards` are the entries, for use as a `source` of a config.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from benchmarks.miniatures.building import (
    SPECIAL_TOKENS,
    Provenance,
    build_once,
    generator_of,
    one_of,
    write_json,
    write_lines,
    write_shards,
)
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import RENDERINGS, VERSIONS, of_split, provenance
from benchmarks.miniatures.emoji.render import Renderings, comparison_crops, on_ground, renderings
from shared.data.text.cleaning import clean_caption

Item = dict[str, Any]
VERSION = 1  # raise it with any change of the pictures or texts
SHARDS, SHARDS_VERSION = 4, 1
SIZE = 64
NOISE = 0.4
COMMON = 300  # concepts of the small set
COMMON_GROUPS = ("animals-nature", "food-drink", "travel-places", "objects", "activities")
MOST_ALIASES, TAGS, MOST_REFERENCES = 3, 2, 5
# Questions and sentences about scenes are made of these and of the concepts' names: one vocabulary
# serves them all.
SENTENCE_WORDS = (
    "a an the is are there this that these it its and or no not one two three four five many much "
    "how what which where who kind of in on to at with without left right top bottom upper lower "
    "corner middle side image images picture pictures photo scene object objects thing things both "
    "each total contain contains has have show shows see you can near next above below here yes "
    "animal animals food foods place places activity activities nature drink travel only same "
    "different more than least exactly other old new young big small broken expensive heavy owner "
    "zero six seven eight 0 1 2 3 4 twice plant transport bird bug mammal marine reptile flower "
    "fruit vegetable sweet famous"
)


def pairs(root: str | Path, seed: int = 0) -> Provenance:
    """Make the emoji pairs present in `root`.

    Pictures are `images/<rendering>/<concept>.png`, 64 px RGB on white, for validation and test,
    and in `images_rgba` with alpha for training. Lists of pairs are
    `pairs_{train,val,test,test_multi,test_syn}.json`, `pairs_train_noise40.json`, and `vocab.txt`;
    with the prefix `common_` those of the 300 everyday objects alone. What noise has changed (a
    share NOISE of the training pairs gets another concept's caption) stands in
    `secret/noise_mask.json`, which only scoring code may read; `pixel_baseline.json` is how far
    comparing pixels goes.
    """
    recipe = {"version": VERSION, "size": SIZE, "noise": NOISE, "seed": seed, "packages": VERSIONS}
    files = build_once(Path(root), "pairs", recipe, lambda folder: _build(folder, seed))
    found = json.loads((Path(root) / "pixel_baseline.json").read_text())["common"]
    baselines = {
        f"nearest training picture by pixels ({split} {measure})": value[measure]
        for split, value in found.items()
        for measure in ("top1", "top5")
    }
    return provenance("emoji-pairs", files, figures={"Without training": baselines})


def pair_shards(root: str | Path) -> Provenance:
    """Make the pairs present in `root`, and `shards/common-<number>.tar`, in webdataset's layout:
    each pair of `common_pairs_train.json` as <key>.png and <key>.json with caption and image_id."""
    root = Path(root)
    made = pairs(root)
    files = made["emoji-pairs"]["files"]

    def build(folder: Path) -> None:
        samples = []
        for item in json.loads((root / "common_pairs_train.json").read_text()):
            about = {"caption": item["caption"], "image_id": item["image_id"]}
            picture = (root / item["image"]).read_bytes()
            samples.append({"png": picture, "json": json.dumps(about).encode()})
        write_shards(folder / "shards", "common", SHARDS, samples)

    origin = files["common_pairs_train.json"]
    recipe = {"version": SHARDS_VERSION, "shards": SHARDS, "pairs": origin}
    files |= build_once(root, "shards", recipe, build)
    return made


def everyday_concepts(concepts: Sequence[Concept]) -> list[int]:
    """Ids of things, animals, food, places and pastimes whose label is one word."""
    return [c.id for c in concepts if c.group in COMMON_GROUPS and c.label.isalpha()]


def apart(concepts: Sequence[Concept], order: Iterable[int], count: int) -> list[int]:
    """Sorted ids of the first `count` of `order`, leaving out what is drawn like an earlier one."""
    chosen: set[int] = set()
    for concept in order:
        if len(chosen) < count and chosen.isdisjoint(concepts[concept].near):
            chosen.add(concept)
    return sorted(chosen)


def common_concepts(drawn: Renderings, seed: int, count: int = COMMON) -> list[int]:
    """Sorted ids of up to `count` everyday concepts, no two of them drawn alike: first those in
    every rendering, then those that validation and test have, then the others, each mixed."""
    held_out = [*of_split("val"), *of_split("test")]

    def tier(concept: int) -> tuple[bool, bool]:
        everywhere = all(there[concept] for there in drawn.present.values())
        return not everywhere, not all(drawn.present[name][concept] for name in held_out)

    pool = everyday_concepts(drawn.concepts)
    mixed = generator_of(seed, "common concepts").permutation(pool).tolist()
    return apart(drawn.concepts, sorted(mixed, key=tier), count)


def held_out_alias(concept: Concept) -> str | None:
    """The alias kept for the test of unseen synonyms: the last in alphabetical order that is no
    part of the label or its sub-group, of concepts with at least two aliases."""
    named = f"{concept.subgroup.replace('-', ' ')} {concept.label}"
    unseen = [alias for alias in sorted(concept.aliases) if not _holds(named, alias)]
    return unseen[-1] if unseen and len(concept.aliases) > 1 else None


def synonyms(concept: Concept) -> list[str]:
    """What training calls a concept: its label and up to three aliases, without the held-out one
    and without those that hold it."""
    own = held_out_alias(concept)
    kept = [a for a in sorted(concept.aliases) if own is None or not _holds(a, own)]
    return [concept.label, *kept[:MOST_ALIASES]]


def training_captions(concept: Concept, held_out: Collection[str], seed: int) -> list[str]:
    """The texts of one concept in training, each once: its synonyms, the label with two tags, the
    sub-group with the label. None holds the concept's own held-out alias, and no tag is one of
    `held_out`, those of all."""
    own, label = held_out_alias(concept), concept.label
    tags = [tag for tag in concept.tags if tag not in held_out and not _holds(label, tag)]
    tags = [tag for tag in tags if own is None or not _holds(tag, own)]
    mixed = generator_of(seed, f"tags {concept.id}").permutation(len(tags))[:TAGS]
    tagged = " ".join([label, *(tags[i] for i in sorted(mixed))])
    texts: dict[str, str] = {}
    for text in (*synonyms(concept), tagged, f"{concept.subgroup.replace('-', ' ')} {label}"):
        if own is None or not _holds(text, own):  # where label and tag meet
            texts.setdefault(clean_caption(text), text)
    return list(texts.values())


def training_items(
    drawn: Renderings, chosen: Collection[int], captions: dict[int, list[str]]
) -> list[Item]:
    """{image, caption, image_id} for every training picture of `chosen` and caption of it."""
    return [
        {"image": picture_file("images_rgba", name, concept), "caption": text, "image_id": concept}
        for concept in sorted(chosen)
        for name in of_split("train")
        if drawn.present[name][concept]
        for text in captions[concept]
    ]


def evaluation_items(drawn: Renderings, split: str, chosen: Sequence[int], seed: int) -> list[Item]:
    """{image, caption: [label], image_id, near, hard} per picture of the split's one rendering.
    `near`: image ids in the list that are drawn (almost) alike; `hard`: the label of another
    picture of the list, of the same sub-group (else the same group, else any) and not near."""
    (name,) = of_split(split)
    there = [c for c in sorted(chosen) if drawn.present[name][c]]
    items = []
    for concept in (drawn.concepts[c] for c in there):
        others = [drawn.concepts[c] for c in there if c != concept.id and c not in concept.near]
        akin = [o for o in others if o.subgroup == concept.subgroup]
        akin = akin or [o for o in others if o.group == concept.group] or others
        generator = generator_of(seed, f"hard {split} {concept.id}")
        item: Item = {"image": picture_file("images", name, concept.id), "caption": [concept.label]}
        item |= {"image_id": concept.id, "near": sorted(set(concept.near) & set(there))}
        items.append(item | {"hard": one_of(akin, generator).label})
    return items


def with_noise(
    items: Sequence[Item], share: float, near: dict[int, list[int]], seed: int
) -> tuple[list[Item], dict[int, Item]]:
    """Give a share of the pairs the caption of another concept that is not drawn alike. Returns the
    pairs and, of those changed, {index: {clean: true caption, kind: "other concept"}}."""
    generator = generator_of(seed, "noise")
    chosen = np.sort(generator.permutation(len(items))[: round(share * len(items))])
    texts: dict[int, list[str]] = {item["image_id"]: [] for item in items}
    for item in items:
        texts[item["image_id"]].append(item["caption"])
    concepts = list(texts)
    noisy, truth = [dict(item) for item in items], {}
    for index in chosen.tolist():
        own = items[index]["image_id"]
        other = own
        while other == own or other in near[own]:
            other = one_of(concepts, generator)
        noisy[index]["caption"] = one_of(texts[other], generator)
        truth[index] = {"clean": items[index]["caption"], "kind": "other concept"}
    return noisy, truth


def vocabulary(texts: Iterable[str], clean: Callable[[str], str] = clean_caption) -> list[str]:
    """WordPiece entries for `texts` after `clean`: special tokens, whole words by frequency (ties:
    alphabet), and each character alone and as a continuation, so that an unseen word is spelt and
    not unknown."""
    counts = Counter(dict.fromkeys(SENTENCE_WORDS.split(), 0))
    for text in texts:
        counts.update(words(text, clean))
    whole = sorted(counts, key=lambda word: (-counts[word], word))
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789", *"".join(whole)})
    pieces = [letter for letter in letters if letter not in counts]
    return [*SPECIAL_TOKENS, *whole, *pieces, *(f"##{letter}" for letter in letters)]


def words(text: str, clean: Callable[[str], str] = clean_caption) -> list[str]:
    """The words that WordPiece looks up for a caption: cleaned, lower case, without accents."""
    plain = BertNormalizer(lowercase=True).normalize_str(clean(text))
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(plain)]


def pixel_baseline(drawn: Renderings, chosen: Sequence[int]) -> dict[str, dict[str, float]]:
    """Image -> concept by the training picture whose 24 px crop correlates most: {split: {top1,
    top5, images}}, in percent. What a model must beat before it sees more than pixels."""
    ids = np.array(sorted(chosen))
    crops = {name: _standardised(drawn.pictures[name][ids]) for name in drawn.pictures}
    found = {}
    for split in ("val", "test"):
        (name,) = of_split(split)
        rows = np.flatnonzero(drawn.present[name][ids])
        nearness = np.full((len(rows), len(ids)), -np.inf, np.float32)
        for train in of_split("train"):
            there = drawn.present[train][ids]
            similar = crops[name][rows] @ crops[train].T
            nearness = np.maximum(nearness, np.where(there[None], similar, -np.inf))
        own = nearness[np.arange(len(rows)), rows]
        better = (nearness > own[:, None]).sum(1)
        found[split] = {
            "top1": round(100 * float((better < 1).mean()), 2),
            "top5": round(100 * float((better < 5).mean()), 2),
            "images": len(rows),
        }
    return found


def _build(folder: Path, seed: int) -> None:
    drawn = renderings()
    _write_pictures(folder, drawn)
    held_out = {a for c in drawn.concepts if (a := held_out_alias(c)) is not None}
    captions = {c.id: training_captions(c, held_out, seed) for c in drawn.concepts}
    common = common_concepts(drawn, seed)
    for prefix, concepts in (("", list(captions)), ("common_", common)):
        _write_lists(folder, prefix, drawn, concepts, captions, seed)
    chosen = {"all": list(captions), "common": common}
    baselines = {name: pixel_baseline(drawn, concepts) for name, concepts in chosen.items()}
    write_json(folder / "pixel_baseline.json", baselines, indent=0)
    (folder / "ATTRIBUTION.md").write_text(drawn.attribution)


def _write_lists(
    folder: Path,
    prefix: str,
    drawn: Renderings,
    chosen: Sequence[int],
    captions: dict[int, list[str]],
    seed: int,
) -> None:
    train = training_items(drawn, chosen, captions)
    lists = {"train": train}
    lists |= {split: evaluation_items(drawn, split, chosen, seed) for split in ("val", "test")}
    lists |= {"test_multi": [], "test_syn": []}
    for item in lists["test"]:
        concept = drawn.concepts[item["image_id"]]
        own = held_out_alias(concept)
        names = [concept.label, *(alias for alias in concept.aliases if alias != own)]
        lists["test_multi"].append({**item, "caption": names[:MOST_REFERENCES]})
        if own is not None:
            unseen = {key: value for key, value in item.items() if key != "hard"}
            lists["test_syn"].append({**unseen, "caption": [own]})
    near = {c: drawn.concepts[c].near for c in chosen}
    lists["train_noise40"], truth = with_noise(train, NOISE, near, seed)
    write_json(folder / "secret" / f"{prefix}noise_mask.json", truth, indent=0)
    for name, items in lists.items():
        write_json(folder / f"{prefix}pairs_{name}.json", items, indent=0)
    write_lines(folder / f"{prefix}vocab.txt", vocabulary(item["caption"] for item in train))


def _write_pictures(folder: Path, drawn: Renderings) -> None:
    for rendering in RENDERINGS:
        training = rendering.split == "train"
        below = "images_rgba" if training else "images"
        (folder / below / rendering.id).mkdir(parents=True)
        for concept in np.flatnonzero(drawn.present[rendering.id]).tolist():
            art = Image.fromarray(drawn.pictures[rendering.id][concept])
            picture = art.resize((SIZE, SIZE), Image.Resampling.BOX)  # weighs colours by alpha
            if not training:
                picture = Image.fromarray(on_ground(np.asarray(picture)[None])[0])
            picture.save(folder / picture_file(below, rendering.id, concept), compress_level=1)


def _standardised(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, D) crops of mean 0 and length 1, so that products are correlations."""
    crops = comparison_crops(pictures)
    crops = crops - crops.mean(1, keepdims=True)
    return crops / np.maximum(np.linalg.norm(crops, axis=1, keepdims=True), 1e-6)


def _holds(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in this order, side by side, in `text`."""
    return f" {clean_caption(phrase)} " in f" {clean_caption(text)} "


def picture_file(below: str, rendering: str, concept: int) -> str:
    """The path of a picture in the folder `below`, relative to the root of the pairs."""
    return f"{below}/{rendering}/{concept:04d}.png"
