"""The console script: `tenfold-capfilt run INPUT --out DIR | merge --out DIR`."""

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from methods.blip.capfilt import card, finishing
from methods.blip.capfilt.models import load_models
from methods.blip.capfilt.running import fault_of, judged
from methods.blip.capfilt.settings import Settings
from shared.checkpoints.reading import CheckpointError
from shared.console import bounded, exit_status
from shared.data.captioned import shards
from shared.data.captioned.journal import Journal
from shared.data.captioned.progress import Meter, print_tally
from shared.data.captioned.records import Source
from shared.data.captioned.sources import open_source
from shared.data.captioned.working import Job, work
from shared.data.errors import DataCorruptError, DataNotFoundError, WorkError
from shared.files import locked, own_folder, read_json
from shared.provenance import git_state
from shared.showing import printable

PROGRAM = "tenfold-capfilt"
FORESEEN = (WorkError, CheckpointError, DataCorruptError, DataNotFoundError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    command = partial(arguments.run, arguments)
    return exit_status(PROGRAM, command, FORESEEN, "the same command goes on")


def run(arguments: argparse.Namespace) -> None:
    """Caption and filter an input, or a shard of it; the same command goes on where it was."""
    settings = Settings(*(getattr(arguments, field.name) for field in fields(Settings)))
    settings.check()
    number, count = shards.shard_of(arguments.shard, os.environ)
    out = shards.output_folder(arguments.out, arguments.inputs)
    source = open_source(arguments.inputs, arguments.image_root)
    device = _device(arguments.device)
    path = shards.journal_path(out, number, count)
    own_folder(path.parent)
    with locked(path.with_suffix(".lock")), closing(Journal(path)) as journal:
        models = load_models(arguments.captioner, arguments.filter, settings, device)
        state = git_state()
        where = {name: getattr(arguments, name) for name in ("inputs", "image_root")}
        where |= {
            name: getattr(arguments, name) if name in models.about else None
            for name in ("captioner", "filter")
        }
        here = {
            "format": shards.FORMAT,
            "tool": f"{PROGRAM} {metadata.version('tenfold')}",
            "git_commit": state["git_commit"],
            "torch": torch.__version__,
            "device": device,
            "settings": asdict(settings),
            "models": models.about,
            "input": source.describe(),
            "shard": [number, count],
            "where": where | {"git_dirty": state["git_dirty"]},
        }
        replayed = journal.replay()
        header = next(replayed, None)
        if header is None:
            journal.append(header := here)
        shards.check_header(header, here, out)
        job = _job(source, settings, number, count, arguments.workers, arguments.max_bad)
        decoder = models.decoder(source.root, settings.max_pixels)
        judge = partial(judged, models=models, settings=settings)
        facts = None
        with Meter(source.size) as meter:
            tally = work(job, judge, decoder, journal, replayed, meter.show)
            rate = meter.rate(tally)
            if count == 1:
                whole = all((out / name).exists() for name in (source.output, *finishing.OTHERS))
                facts = (
                    read_json(out / finishing.CARD_JSON)
                    if whole
                    else finishing.finish(out, job, settings, header, [path], meter.writing)
                )
    if journal.cut:
        print(f"the journal's end was torn: {journal.cut:,} bytes were cut and worked out again")
    print_tally(tally, rate, finishing.CAPTIONS)
    if facts is not None:
        _print_table(facts, out)
    else:
        advice = f"when all {count} have ended: {PROGRAM} merge --out {printable(str(out))}"
        print(f"shard {number}/{count} has ended; {advice}")


def merge(arguments: argparse.Namespace) -> None:
    """Join shards that have ended to what one process would have written."""
    folders = [Path(folder) for folder in arguments.shards or [arguments.out]]
    header, journals = shards.gather(folders)
    where, settings = header["where"], Settings(**header["settings"])
    out = shards.output_folder(arguments.out, where["inputs"])
    source = open_source(where["inputs"], where["image_root"])
    shards.check_header(header, header | {"input": source.describe()}, out)
    lock = own_folder(out / shards.WORK) / "merge.lock"
    with locked(lock), Meter(None) as meter:
        job = _job(source, settings)
        facts = finishing.finish(out, job, settings, header, journals, meter.writing)
    _print_table(facts, out)


def _job(source: Source, settings: Settings, *share: Any) -> Job:
    """The work on a share of the input: see `Job`; by default all of it."""
    fault = partial(fault_of, settings=settings)
    return Job(source, settings.batch_size, settings.limit, fault, *share)


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise WorkError("--device cuda: there is no such one here")
    return ("cuda" if available else "cpu") if name == "auto" else name


def _print_table(facts: dict[str, Any], out: Path) -> None:
    table = Table("texts", box=box.SIMPLE_HEAD)
    for name in ("of usable images", "kept", "accepted"):
        table.add_column(name, justify="right")
    for row in card.text_rows(facts):
        table.add_row(*row)
    Console(highlight=False).print(table)
    print(f"{facts['pairs']:,} pairs: {printable(str(out / facts['output']))}")
    print(f"card and examples: {printable(str(out / finishing.CARD))}, {finishing.SHEET}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Caption images and filter texts (BLIP).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], text: str) -> Callable[..., argparse.Action]:
        about = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(run.__name__, help=text, description=about)
        made.set_defaults(run=run)
        return made.add_argument

    add = command(run, "caption and filter; the same command goes on where it was stopped")
    add("inputs", nargs="+", metavar="INPUT", help=".json, .jsonl, folder, or tar shards")
    add("--out", required=True, metavar="DIR", help="folder of its own for all outputs")
    add("--image-root", metavar="DIR", help="of a .json or .jsonl; by default the file's folder")
    add("--captioner", metavar="PATH", help="checkpoint of ours, official one or its HF folder")
    add("--filter", metavar="PATH", help="the same for matching")
    add("--no-web", dest="web", action="store_false", help="leave the input's texts out")
    text = "write no captions: only filter"
    add("--no-synthetic", "--filter-only", dest="synthetic", action="store_false", help=text)
    text = "judge nothing: only write captions"
    add("--caption-only", dest="filtered", action="store_false", help=text)

    def option(name: str, kind: Callable[[str], Any], text: str) -> None:
        usual, flag = getattr(Settings, name), f"--{name.replace('_', '-')}"
        add(flag, type=kind, default=usual, metavar="N", help=f"{text}; by default {usual!r}")

    option("threshold", bounded(float, 0, 1), "texts stay above this match probability")
    option("beams", bounded(int, 0, 100), "search with so many beams instead of sampling")
    option("top_p", bounded(float, 1e-6, 1), "mass of the nucleus that is sampled from")
    option("top_k", bounded(int, 1, 10**6), "tokens that are sampled from at most")
    option("max_length", bounded(int, 1, 512), "tokens of a caption, prompt included")
    option("min_length", bounded(int, 0, 512), "at least")
    option("prompt", str, "what captions begin with, which is cut off")
    option("batch_size", bounded(int, 1, 10**5), "entries that go through the models together")
    option("seed", bounded(int, 0, 2**63 - 1), "of the sampling")
    option("limit", bounded(int, 1, 10**15), "entries that are read")
    option("max_pixels", bounded(int, 1, 10**9), "of an image; larger ones are left out")
    option("vocab", str, "BERT's vocab.txt, or its folder, where an official file has none")
    option("licence", str, "of the data, for the card")
    text = "share of unusable entries that is no error; by default %(default)s"
    add("--max-bad", type=bounded(float, 0, 1), default=Job.most_bad, metavar="SHARE", help=text)
    processes = min(8, os.cpu_count() or 1)
    text = "processes that decode images; by default %(default)s"
    add("--workers", type=bounded(int, 0, 1000), default=processes, metavar="N", help=text)
    text = "work on the i-th of n shards, from 0 on; by default as SLURM's array says"
    add("--shard", metavar="i/n", help=text)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the models")

    add = command(merge, "join shards that have ended to the same bytes as one process writes")
    add("shards", nargs="*", metavar="DIR", help="their --out, if it is not the same")
    add("--out", required=True, metavar="DIR", help="as of `run`")
    return parser
