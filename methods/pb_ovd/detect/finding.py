"""`tenfold-detect IMAGES --classes "red apple, dog" --detector FILE`: objects of these names.

detections.json   boxes in COCO's form of results, with the names of images and classes
pictures/N.png    the first pictures with their boxes
sheet.html        these on one page, and what could not be read
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from shared.console import bounded, exit_status
from shared.data.captioned.origins import origin_of
from shared.predict.detections import detected, draw, results
from shared.predict.inputs import Pictures, find_inputs, listed, read_texts
from shared.predict.model import load
from shared.predict.outputs import percent, write
from shared.showing import printable
from shared.tools import sheet
from shared.tools.command import FORESEEN

PROGRAM = "tenfold-detect"
DETECTIONS, SHEET = "detections.json", "sheet.html"
TEMPLATE = Path(__file__).with_name("found.html")
MOST_CLASSES = 10_000
MOST_SAID = 6  # objects of a picture that are named on the sheet
MOST_NAMED = 12  # pictures that cannot be read, on the sheet


def main(argv: Sequence[str]) -> int:
    """Find objects; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    words = argv[1:] if argv[0] == "find" else argv
    arguments = _parser().parse_args(words)
    return exit_status(PROGRAM, partial(find, arguments), FORESEEN, "nothing is left half written")


def find(arguments: argparse.Namespace) -> None:
    """Write what is found in the pictures of a folder, or in one file."""
    root, out = Path(arguments.images), Path(arguments.out)
    names = named_classes(arguments.classes)
    paths = [path for path in find_inputs(root) if out not in path.parents]  # of an earlier run
    official = arguments.experiment, arguments.overrides
    model = load(arguments.detector, arguments.device, *official)
    model.open_texts(arguments.texts)
    module = model.predictor.module
    module.name_classes(names)
    predictor = replace(model.predictor, class_names=names, category_ids=None)
    images = Pictures(root, paths, predictor.image_mode)
    counts = arguments.batch_size, arguments.min_score, arguments.max_detections

    rows: list[dict[str, Any]] = []
    examples: list[tuple[bool, sheet.Example]] = []
    for place, picture, found in detected(predictor, images, *counts):
        name = images.name(place)
        own = results(found, place + 1, name, names)
        rows += own
        if len(examples) < arguments.sheet_images:
            drawn = draw(picture, found, names)
            write(out / f"pictures/{len(examples) + 1}.png", Image.fromarray(drawn))
            said = [f"{row['category']} {percent(row['score'])}" for row in own]
            more = [f"and {len(said) - MOST_SAID} more"] if len(said) > MOST_SAID else []
            example = sheet.Example(sheet.data_address(drawn), name, said[:MOST_SAID] + more)
            examples.append((bool(own), example))
    write(out / DETECTIONS, rows)
    faults = [f"{Path(path).name} ({reason})" for path, reason in images.corrupt.items()]
    kinds = {"unreadable": {"entries": len(faults), "examples": faults[:MOST_NAMED]}}
    facts = {
        "models": {"detector": origin_of(Path(arguments.detector))},
        "texts": arguments.texts or "the detector's own",
        "images": len(images) - len(faults),
        "objects": len(rows),
        "classes": names,
        "min_score": arguments.min_score,
        "unusable": {"entries": len(faults), "kinds": kinds},
    }
    groups = [
        (title, some)
        for title, seen in (("objects", True), ("nothing found", False))
        if (some := [example for of, example in examples if of == seen])
    ]
    sheet.write(out / SHEET, TEMPLATE, facts, groups)
    for fault in faults:
        print(f"unreadable: {printable(fault)}", file=sys.stderr)
    counted = f"{len(rows):,} objects of {len(names):,} classes in {facts['images']:,} pictures"
    left = f", {len(faults):,} unreadable left out" if faults else ""
    print(f"{counted}{left}: {printable(str(out / DETECTIONS))}; {SHEET}, pictures/")


def named_classes(given: str) -> list[str]:
    """Names with commas between, or of a file, one a line; PredictError of none or too many."""
    if given.endswith(".txt"):
        given = ", ".join(line.replace(",", " ") for line in read_texts(given, "--classes "))
    return listed(given, MOST_CLASSES)


def add_official(add: Callable[..., Any], experiment: str, override: str) -> None:
    """Add the arguments that say what an official checkpoint is."""
    text = f"that an official checkpoint is of: {experiment}"
    add("--experiment", metavar="NAME", help=text)
    text = f"of that experiment, as {override}; may be given several times"
    how: dict[str, Any] = {"dest": "overrides", "action": "append", "default": []}
    add("--override", metavar="K=V", help=text, **how)


def _parser() -> argparse.ArgumentParser:
    about = "Find objects of classes that you name (PB-OVD)."
    parser = argparse.ArgumentParser(PROGRAM, description=about)
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder, searched below, too, or one file")
    text = "names with commas between, or a .txt with one a line"
    add("--classes", required=True, metavar="NAMES", help=text)
    text = "PB-OVD's checkpoint, of ours or an official one with --experiment"
    add("--detector", required=True, metavar="FILE", help=text)
    text = (
        "what embeds names: CLIP's text encoder as hub:NAME or a folder, or a .json of names with "
    )
    text += "their vectors; by default the detector knows the names that it was trained on"
    add("--texts", metavar="PATH", help=text)
    add("--out", default="detections", metavar="DIR", help="by default %(default)s")
    add_official(add, "pb_ovd/coco", "method.seed=1")

    def option(name: str, kind: Callable[[str], Any], usual: Any, text: str) -> None:
        add(name, type=kind, default=usual, metavar="N", help=f"{text}; by default {usual}")

    option("--min-score", bounded(float, 0, 1), 0.3, "of an object that is written and drawn")
    option("--max-detections", bounded(int, 1, 1000), 100, "of a picture, the surest")
    option("--batch-size", bounded(int, 1, 10**4), 8, "pictures that the detector sees together")
    option("--sheet-images", bounded(int, 0, 10**4), 60, "pictures that are drawn")
    add("--device", default="auto", help="auto, cpu, cuda")
    return parser
