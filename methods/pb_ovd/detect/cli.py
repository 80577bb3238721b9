"""The console script: `tenfold-detect IMAGES --classes "red apple, dog" --detector FILE`, and
`tenfold-detect label INPUT --out DIR | merge --out DIR`."""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from methods.pb_ovd.detect import finding
from methods.pb_ovd.detect.labelling import Labeller, Settings
from methods.pb_ovd.detect.labels import LABELS, labels
from methods.pb_ovd.detect.proposals import open_proposals
from methods.pb_ovd.detect.teacher import OBJECTIVES, load_teacher
from methods.pb_ovd.mentions import ObjectWords, read_object_names
from shared.console import bounded
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.origins import origin_of
from shared.data.captioned.records import Source
from shared.data.errors import WorkError
from shared.data.images import Pixels
from shared.predict.detections import Objects, draw
from shared.tools import command
from shared.tools.tool import Card, Opened, Tool


def options(add: Callable[..., Any], option: Callable[..., None]) -> None:
    """Add the arguments of its own."""
    text = 'what objects are called: JSON, {"tv": ["tv", "television"]}'
    add("--vocabulary", required=True, metavar="FILE", help=text)
    text = "ALBEF's checkpoint, of ours, zoo:NAME, or an official one with --experiment"
    add("--teacher", required=True, metavar="PATH", help=text)
    finding.add_official(add, "albef/pretrain_base", "data.vocab=PATH")
    text = "boxes in COCO's form (.json), or the checkpoint of a detector"
    add("--proposals", required=True, metavar="PATH", help=text)
    add("--every-caption", action="store_true", help="of an entry with several, not one by lot")
    text = "keep the official code's oddities, see the manual"
    add("--official", action="store_true", help=text)
    text = "whose gradient says where the teacher looks, see the manual; by default matching"
    add("--objective", choices=OBJECTIVES, default="matching", help=text)
    option("layer", bounded(int, 0, 1000), "of the text stack, or block of the vision transformer")
    option("threshold", bounded(float, 0, 1), "of a map's maximum, below which it is 0")
    option("exponent", bounded(float, 0, 2), "of a box's area, by which its sum is divided")
    option("most", bounded(int, 1, 10**5), "proposals of an image")


def load(arguments: Namespace, settings: Settings, source: Source, device: str) -> Opened:
    """Load teacher, vocabulary and proposals."""
    if source.root is None:
        raise WorkError("annotations name image files, and tar shards have none: unpack them")
    vocabulary = read_object_names(arguments.vocabulary)
    official = arguments.experiment, arguments.overrides
    looking = settings.objective, settings.layer
    teacher = load_teacher(arguments.teacher, *official, *looking, device)
    words = ObjectWords(vocabulary, teacher.tokenizer, settings.official)
    proposer = open_proposals(arguments.proposals, settings.most, device)
    given = source.root, (teacher.size,), settings.max_pixels, teacher.on_white
    models = {
        "teacher": teacher.origin,
        "proposals": proposer.origin,
        "vocabulary": origin_of(Path(arguments.vocabulary)),
    }
    return Opened(
        Labeller(teacher, words, proposer, settings),
        Decoder(*given, whole=proposer.pixels),
        {"models": models, "unmatched_words": words.unmatched},
    )


def card(facts: Mapping[str, Any]) -> Card:
    """Its part of the data card."""
    often = sorted(facts["classes"].items(), key=lambda item: -item[1])
    summary = [
        f"{facts['annotations']:,} pseudo boxes of {len(often):,} classes on "
        f"{facts['images']:,} images, of {facts['entries']:,} captioned entries (PB-OVD).",
        "Nobody drew or checked a box: each is the proposal that covers best what the teacher "
        "looks at for a word of the caption. An object that no caption names has none, and of "
        "several of one name in an image one was taken by lot.",
    ]
    items = [
        f"{facts['mentions']:,} mentions, {facts['boxes']:,} of them with a box; "
        f"{facts['entries_without_mention']:,} usable entries mention nothing"
    ]
    if words := facts["unmatched_words"]:
        listed = ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
        items.append(f"left out, since the teacher does not know them: {listed}")
    rows = [[name, f"{count:,}"] for name, count in often]
    return Card(summary, items, "Classes", ["class", "boxes"], rows)


def drawn(pixels: Pixels, shown: Any) -> Pixels:
    """An image with the boxes that were found for words."""
    _, objects = shown
    names = sorted({name for name, _, _ in objects})
    labels = torch.tensor([names.index(name) + 1 for name, _, _ in objects])
    boxes, scores = ([one[place] for one in objects] for place in (1, 2))
    return draw(pixels, Objects(torch.tensor(boxes), torch.tensor(scores), labels, None), names)


LABELLING = Tool(
    program="tenfold-detect",
    about="Boxes for words of captions (PB-OVD); objects of classes that you name are found by "
    "`tenfold-detect IMAGES --classes NAMES`, see `tenfold-detect find --help`.",
    verb="label",
    does="find boxes for what captions name",
    template=Path(__file__).with_name("sheet.html"),
    settings=Settings,
    options=options,
    open=load,
    fault_of=lambda record, row, settings: row.get("fault") or record.text_fault,
    log="unusable.jsonl",
    output=lambda source: LABELS,
    results=labels,
    card=card,
    drawn=drawn,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] not in (LABELLING.verb, "merge", "-h", "--help"):
        return finding.main(words)
    return command.main(LABELLING, words)
