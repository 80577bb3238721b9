"""Emoji as BLIP's CapFilt meets them: a few drawings that people described, many with alt texts
from the web, half of which say something else.

One drawing of each concept is described by people, the others have one alt text each: a name of the
concept, another concept's, or what only a file says. The words of all concepts are thus in clean
texts, as those of the web mostly are in COCO's. `web_texts` is the entry, for use as a `source`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    one_of,
    write_json,
)
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import VERSIONS, of_split
from benchmarks.miniatures.emoji.pairs import (
    common_concepts,
    held_out_alias,
    pairs,
    picture_file,
    synonyms,
    training_captions,
)
from benchmarks.miniatures.emoji.render import Renderings, renderings
from benchmarks.miniatures.emoji.scenes import article, coco_captions

Item = dict[str, Any]
VERSION = 4  # raise it with any change of the lists
# The captioner is prompted by "a picture of ", so that no description begins so itself.
DESCRIPTIONS = (
    "{}",
    "the image shows {}",
    "{} on a white ground",
    "this is {}",
    "you can see {}",
)
FILE_TEXTS = (
    "file u {code} number {number}",
    "symbol {concept} {rendering} {number}",
    "home page {group} {number}",
)
NUMBERS = 17  # of versions, pixels and pages
CORRUPTED = 0.5  # share of the web's texts


def web_texts(root: str | Path, pairs_root: str | Path, seed: int = 0) -> Provenance:
    """Make the lists present in `root`, whose pictures are those of `pairs_root`.

    One drawing of each concept is described by people: in `human_train.json` five texts make five
    entries, as COCO's do, in `human_pretrain.json` they make one, so that people describe no larger
    a share of pre-training than of the drawings. All others are in `web_train.json` with one text.
    A share CORRUPTED of the web's texts is wrong, half of them another concept's names and half a
    file's; which, stands in `secret/web_mask.json` alone, which only scoring code may read: {index:
    {clean, kind}}. `web_oracle.json` is what a perfect filter keeps. `human_{val,test}.json` and
    `human_{val,test}_gt.json`, as of COCO's captions, describe the drawings of two artists of their
    own. With the prefix `common_` everything once more, of the 300 everyday objects. The vocabulary
    of the emoji pairs serves all texts; what only a file says is spelt.
    """
    pictures = pairs(pairs_root)
    recipe = {"version": VERSION, "packages": VERSIONS, "corrupted": CORRUPTED}
    recipe |= {"described": 1, "seed": seed}

    def build(folder: Path) -> None:
        drawn = renderings()
        chosen = {"": list(range(len(drawn.concepts))), "common_": common_concepts(drawn, seed=0)}
        for prefix, concepts in chosen.items():
            _write_lists(folder, prefix, drawn, concepts, seed)

    files = build_once(root, "web-texts", recipe, build)
    about = pictures["emoji-pairs"]
    return {**pictures, "emoji-web-texts": {"files": files, "licence": about["licence"]}}


def descriptions(concept: Concept, seed: int) -> list[str]:
    """What people say of a drawing of a concept: five texts, the first of which has its label."""
    generator = generator_of(seed, f"descriptions {concept.id}")
    names = [concept.label, *(one_of(synonyms(concept), generator) for _ in DESCRIPTIONS[1:])]
    named = [f"{article(name)} {name}".strip() for name in names]
    return [text.format(name) for text, name in zip(DESCRIPTIONS, named, strict=True)]


def shared_out(
    drawn: Renderings, chosen: Sequence[int], seed: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """The training drawings, (concept, rendering), that people describe, one of each concept, drawn
    by `seed`, and those of the web; a single one is the web's."""
    human: list[tuple[int, str]] = []
    web: list[tuple[int, str]] = []
    for concept in sorted(chosen):
        names = [name for name in of_split("train") if drawn.present[name][concept]]
        mixed = generator_of(seed, f"described {concept}").permutation(len(names))
        for place, name in enumerate(names):
            described = place == mixed[0] and len(names) > 1
            (human if described else web).append((concept, name))
    return human, web


def with_wrong_texts(
    items: Sequence[Item],
    about: Sequence[tuple[int, str]],
    concepts: Mapping[int, Concept],
    captions: Mapping[int, Sequence[str]],
    share: float,
    seed: int,
) -> tuple[list[Item], dict[int, Item]]:
    """Give a share of the items a wrong text, by turns another concept's and a file's. Returns the
    items and, of those changed, {index: {clean, kind: "other concept" or "file"}}. `about`:
    (concept, rendering) of each item; names of concepts that are drawn alike are not wrong."""
    generator = generator_of(seed, "wrong texts")
    chosen = generator.permutation(len(items))[: round(share * len(items))].tolist()
    wrong, truth = [dict(item) for item in items], {}
    ids = sorted(concepts)
    for number, index in enumerate(chosen):
        concept, rendering = about[index]
        own = concepts[concept]
        if number % 2 == 0:
            kind, other = "other concept", concept
            while other == concept or other in own.near:
                other = one_of(ids, generator)
            text = one_of(captions[other], generator)
        else:
            kind = "file"
            text = one_of(FILE_TEXTS, generator).format(
                code=own.hexcode.split("-")[0].lower(),
                concept=concept,
                rendering=rendering,
                group=own.group.replace("-", " "),
                number=1 + int(generator.integers(NUMBERS)),
            )
        wrong[index]["caption"] = text
        truth[index] = {"clean": items[index]["caption"], "kind": kind}
    return wrong, dict(sorted(truth.items()))


def _write_lists(
    folder: Path, prefix: str, drawn: Renderings, chosen: Sequence[int], seed: int
) -> None:
    concepts = {c: drawn.concepts[c] for c in sorted(chosen)}
    held_out = {a for c in drawn.concepts if (a := held_out_alias(c)) is not None}
    # The vocabulary has no hyphen, which BLIP's cleaning keeps.
    captions = {
        c: [text.replace("-", " ") for text in training_captions(concept, held_out, seed)]
        for c, concept in concepts.items()
    }
    told = {
        c: [text.replace("-", " ") for text in descriptions(concept, seed)]
        for c, concept in concepts.items()
    }
    human, web = shared_out(drawn, chosen, seed)
    human_items: list[Item] = [
        {"image": picture_file("images_rgba", name, concept), "caption": text, "image_id": concept}
        for concept, name in human
        for text in told[concept]
    ]
    pictures = [
        {"image": picture_file("images_rgba", name, concept), "caption": told[concept]}
        for concept, name in human
    ]
    generator = generator_of(seed, "alt texts")
    # An image of the web has no id: which ones show the same thing, nobody has said.
    clean: list[Item] = [
        {
            "image": picture_file("images_rgba", name, concept),
            "caption": one_of(captions[concept], generator),
        }
        for concept, name in web
    ]
    noisy, truth = with_wrong_texts(clean, web, concepts, captions, CORRUPTED, seed)
    lists: dict[str, Any] = {"human_train": human_items, "human_pretrain": pictures}
    lists["web_train"] = noisy
    lists["web_oracle"] = [item for n, item in enumerate(noisy) if n not in truth]
    for split in ("val", "test"):
        (name,) = of_split(split)
        there = [c for c in concepts if drawn.present[name][c]]
        lists[f"human_{split}"] = [
            {"image": picture_file("images", name, c), "caption": told[c]} for c in there
        ]
        said = [(c, text) for c in there for text in told[c]]
        lists[f"human_{split}_gt"] = coco_captions(there, said)
    for name, content in lists.items():
        write_json(folder / f"{prefix}{name}.json", content, indent=0)
    write_json(folder / "secret" / f"{prefix}web_mask.json", truth, indent=0)
