"""The console script: `tenfold-capfilt run INPUT --out DIR | merge --out DIR`."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from methods.blip.capfilt.networks import load_models
from methods.blip.capfilt.outcome import pairs
from methods.blip.capfilt.running import fault_of, judged
from methods.blip.capfilt.settings import Settings
from shared.console import bounded
from shared.data.captioned.records import Source
from shared.tools import command
from shared.tools.tool import Card, Opened, Tool


def options(add: Callable[..., Any], option: Callable[..., None]) -> None:
    """Add the arguments of its own."""
    text = "checkpoint of ours, official one or its HF folder"
    add("--captioner", metavar="PATH", help=text)
    add("--filter", metavar="PATH", help="the same for matching")
    add("--no-web", dest="web", action="store_false", help="leave the input's texts out")
    text = "write no captions: only filter"
    add("--no-synthetic", "--filter-only", dest="synthetic", action="store_false", help=text)
    text = "judge nothing: only write captions"
    add("--caption-only", dest="filtered", action="store_false", help=text)
    option("threshold", bounded(float, 0, 1), "texts stay above this match probability")
    option("beams", bounded(int, 0, 100), "search with so many beams instead of sampling")
    option("top_p", bounded(float, 1e-6, 1), "mass of the nucleus that is sampled from")
    option("top_k", bounded(int, 1, 10**6), "tokens that are sampled from at most")
    option("max_length", bounded(int, 1, 512), "tokens of a caption, prompt included")
    option("min_length", bounded(int, 0, 512), "at least")
    option("prompt", str, "what captions begin with, which is cut off")
    option("vocab", str, "BERT's vocab.txt, or its folder, where an official file has none")


def load(arguments: Namespace, settings: Settings, source: Source, device: str) -> Opened:
    """Load captioner and filter."""
    models = load_models(arguments.captioner, arguments.filter, settings, device)
    judge = partial(judged, models=models, settings=settings)
    decoder = models.decoder(source.root, settings.max_pixels)
    return Opened(judge, decoder, {"models": models.about})


def card(facts: Mapping[str, Any]) -> Card:
    """Its part of the data card."""
    counted = f"{facts['pairs']:,} pairs of images and texts, of {facts['entries']:,} entries"
    rule = "No filter judged: all texts stay."
    if facts["settings"]["filtered"]:
        rule = (
            "A text stays if its match probability is above the threshold. Each is judged "
            "alone: an image may be in several pairs or in none."
        )
    summary = [f"{counted}, by captioning and filtering (BLIP, section 3.3).", rule]
    columns = ["texts", "of usable images", "kept", "accept rate"]
    rows = []
    for origin, counts in facts["texts"].items():
        rate = counts["accept_rate"]
        share = "-" if rate is None else f"{100 * rate:.1f} %"
        rows.append([origin, f"{counts['texts']:,}", f"{counts['kept']:,}", share])
    return Card(summary, [], "Texts", columns, rows)


CAPFILT = Tool(
    program="tenfold-capfilt",
    about="Caption images and filter texts (BLIP).",
    verb="run",
    does="caption and filter",
    template=Path(__file__).with_name("sheet.html"),
    settings=Settings,
    options=options,
    open=load,
    fault_of=fault_of,
    log="captions.jsonl",
    output=attrgetter("output"),
    results=pairs,
    card=card,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    return command.main(CAPFILT, argv)
