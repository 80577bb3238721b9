"""The console script: `tenfold-detect label INPUT --out DIR | merge --out DIR`."""

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

from methods.pb_ovd.detect import finishing
from methods.pb_ovd.detect.labelling import Labeller, fault_of
from methods.pb_ovd.detect.proposals import open_proposals
from methods.pb_ovd.detect.settings import Settings
from methods.pb_ovd.detect.teacher import load_teacher
from methods.pb_ovd.mentions import ObjectWords, read_object_names
from shared.checkpoints.reading import CheckpointError
from shared.console import bounded, exit_status
from shared.data.captioned import shards
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.journal import Journal
from shared.data.captioned.origins import origin_of
from shared.data.captioned.progress import Meter, print_tally
from shared.data.captioned.records import Source
from shared.data.captioned.sources import open_source
from shared.data.captioned.working import Job, work
from shared.data.errors import DataCorruptError, DataNotFoundError, WorkError
from shared.files import locked, own_folder, read_json
from shared.predict.inputs import PredictError, resolve_device
from shared.provenance import git_state
from shared.showing import printable

PROGRAM = "tenfold-detect"
FORESEEN = (WorkError, CheckpointError, DataCorruptError, DataNotFoundError, PredictError)
NAMED = ("inputs", "image_root", "vocabulary", "teacher", "experiment", "overrides", "proposals")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    command = partial(arguments.run, arguments)
    return exit_status(PROGRAM, command, FORESEEN, "the same command goes on")


def label(arguments: argparse.Namespace) -> None:
    """Find boxes for an input, or a shard of it; the same command goes on where it was."""
    settings = Settings(*(getattr(arguments, field.name) for field in fields(Settings)))
    number, count = shards.shard_of(arguments.shard, os.environ)
    out = shards.output_folder(arguments.out, arguments.inputs)
    source = _source(arguments.inputs, arguments.image_root)
    vocabulary = read_object_names(arguments.vocabulary)
    device = str(resolve_device(arguments.device))
    path = shards.journal_path(out, number, count)
    own_folder(path.parent)
    with locked(path.with_suffix(".lock")), closing(Journal(path)) as journal:
        official = arguments.experiment, arguments.overrides
        teacher = load_teacher(arguments.teacher, *official, settings.layer, device)
        words = ObjectWords(vocabulary, teacher.tokenizer, settings.official)
        proposer = open_proposals(arguments.proposals, settings.most, device)
        state = git_state()
        here = {
            "format": shards.FORMAT,
            "tool": f"{PROGRAM} {metadata.version('tenfold')}",
            "git_commit": state["git_commit"],
            "torch": torch.__version__,
            "device": device,
            "settings": asdict(settings),
            "models": {
                "teacher": teacher.origin,
                "proposals": proposer.origin,
                "vocabulary": origin_of(Path(arguments.vocabulary)),
            },
            "unmatched_words": words.unmatched,
            "input": source.describe(),
            "shard": [number, count],
            "where": {name: getattr(arguments, name) for name in NAMED}
            | {"git_dirty": state["git_dirty"]},
        }
        replayed = journal.replay()
        header = next(replayed, None)
        if header is None:
            journal.append(header := here)
        shards.check_header(header, here, out)
        job = _job(source, settings, number, count, arguments.workers, arguments.max_bad)
        given = source.root, (teacher.size,), settings.max_pixels, teacher.on_white
        decoder = Decoder(*given, whole=proposer.pixels)
        labeller = Labeller(teacher, words, proposer, settings)
        facts = None
        with Meter(source.size) as meter:
            tally = work(job, labeller, decoder, journal, replayed, meter.show)
            rate = meter.rate(tally)
            if count == 1:
                whole = all((out / name).exists() for name in finishing.OUTPUTS)
                facts = (
                    read_json(out / finishing.CARD_JSON)
                    if whole
                    else finishing.finish(out, job, settings, header, [path], meter.writing)
                )
    if journal.cut:
        print(f"the journal's end was torn: {journal.cut:,} bytes were cut and worked out again")
    print_tally(tally, rate, finishing.UNUSABLE)
    if facts is not None:
        _print_facts(facts, out)
    else:
        advice = f"when all {count} have ended: {PROGRAM} merge --out {printable(str(out))}"
        print(f"shard {number}/{count} has ended; {advice}")


def merge(arguments: argparse.Namespace) -> None:
    """Join shards that have ended to what one process would have written."""
    folders = [Path(folder) for folder in arguments.shards or [arguments.out]]
    header, journals = shards.gather(folders)
    where, settings = header["where"], Settings(**header["settings"])
    out = shards.output_folder(arguments.out, where["inputs"])
    source = _source(where["inputs"], where["image_root"])
    shards.check_header(header, header | {"input": source.describe()}, out)
    lock = own_folder(out / shards.WORK) / "merge.lock"
    with locked(lock), Meter(None) as meter:
        job = _job(source, settings)
        facts = finishing.finish(out, job, settings, header, journals, meter.writing)
    _print_facts(facts, out)


def _source(inputs: Sequence[str], image_root: str | None) -> Source:
    """The input; WorkError of archives, whose images no annotation can name."""
    source = open_source(inputs, image_root)
    if source.root is None:
        raise WorkError("annotations name image files, and tar shards have none: unpack them")
    return source


def _job(source: Source, settings: Settings, *share: Any) -> Job:
    """The work on a share of the input: see `Job`; by default all of it."""
    return Job(source, settings.batch_size, settings.limit, fault_of, *share)


def _print_facts(facts: dict[str, Any], out: Path) -> None:
    found = f"{facts['mentions']:,} mentions of objects, {facts['boxes']:,} with a box"
    print(f"{found}; {facts['entries_without_mention']:,} usable entries mention none")
    if words := facts["unmatched_words"]:
        shown = ", ".join(map(printable, words[:10])) + (", ..." if len(words) > 10 else "")
        print(f"left out, since the teacher does not know them: {shown}")
    boxes = f"{facts['annotations']:,} boxes of {len(facts['classes']):,} classes"
    print(f"{boxes} on {facts['images']:,} images: {printable(str(out / finishing.LABELS))}")
    print(f"card: {printable(str(out / finishing.CARD))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Boxes of objects by words (PB-OVD).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], text: str) -> Callable[..., argparse.Action]:
        about = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(run.__name__, help=text, description=about)
        made.set_defaults(run=run)
        return made.add_argument

    add = command(label, "find boxes for what captions name; the same command goes on")
    add("inputs", nargs="+", metavar="INPUT", help=".json, .jsonl, or a folder")
    add("--out", required=True, metavar="DIR", help="folder of its own for all outputs")
    text = 'what objects are called: JSON, {"tv": ["tv", "television"]}'
    add("--vocabulary", required=True, metavar="FILE", help=text)
    text = "ALBEF's checkpoint, of ours, zoo:NAME, or an official one with --experiment"
    add("--teacher", required=True, metavar="PATH", help=text)
    text = "boxes in COCO's form (.json), or the checkpoint of a detector"
    add("--proposals", required=True, metavar="PATH", help=text)
    add("--image-root", metavar="DIR", help="of a .json or .jsonl; by default the file's folder")
    add("--experiment", metavar="NAME", help="that an official teacher is of: albef/pretrain_base")
    text = "of that experiment, as data.vocab=PATH; may be given several times"
    add("--override", dest="overrides", action="append", default=[], metavar="K=V", help=text)
    add("--every-caption", action="store_true", help="of an entry with several, not one by lot")
    add("--official", action="store_true", help="keep the official code's oddities, see the manual")

    def option(name: str, kind: Callable[[str], Any], text: str) -> None:
        usual, flag = getattr(Settings, name), f"--{name.replace('_', '-')}"
        add(flag, type=kind, default=usual, metavar="N", help=f"{text}; by default {usual!r}")

    option("layer", bounded(int, 0, 1000), "of the text stack, whose attention is looked at")
    option("threshold", bounded(float, 0, 1), "of a map's maximum, below which it is 0")
    option("exponent", bounded(float, 0, 2), "of a box's area, by which its sum is divided")
    option("most", bounded(int, 1, 10**5), "proposals of an image")
    option("batch_size", bounded(int, 1, 10**5), "entries that go through the teacher together")
    option("seed", bounded(int, 0, 2**63 - 1), "of captions and boxes that are taken by lot")
    option("limit", bounded(int, 1, 10**15), "entries that are read")
    option("max_pixels", bounded(int, 1, 10**9), "of an image; larger ones are left out")
    option("licence", str, "of the data, for the card")
    text = "share of unusable entries that is no error; by default %(default)s"
    add("--max-bad", type=bounded(float, 0, 1), default=Job.most_bad, metavar="SHARE", help=text)
    processes = min(8, os.cpu_count() or 1)
    text = "processes that decode images; by default %(default)s"
    add("--workers", type=bounded(int, 0, 1000), default=processes, metavar="N", help=text)
    text = "work on the i-th of n shards, from 0 on; by default as SLURM's array says"
    add("--shard", metavar="i/n", help=text)
    add("--device", default="auto", help="of the models: auto, cpu, cuda")

    add = command(merge, "join shards that have ended to the same bytes as one process writes")
    add("shards", nargs="*", metavar="DIR", help="their --out, if it is not the same")
    add("--out", required=True, metavar="DIR", help="as of `label`")
    return parser
