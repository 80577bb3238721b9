"""A tool's console script: `PROGRAM VERB INPUT --out DIR` and `PROGRAM merge --out DIR`."""

import argparse
import os
import shlex
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

from shared.checkpoints.reading import CheckpointError
from shared.console import bounded, exit_status
from shared.data.captioned import shards
from shared.data.captioned.journal import Journal
from shared.data.captioned.progress import Meter, print_tally
from shared.data.captioned.records import Record, Source
from shared.data.captioned.sources import open_source
from shared.data.captioned.working import Job, Row, work
from shared.data.errors import DataCorruptError, DataNotFoundError, WorkError
from shared.files import locked, own_folder, read_json
from shared.predict.inputs import PredictError, resolve_device
from shared.provenance import git_state
from shared.showing import printable
from shared.tools import finishing
from shared.tools.tool import Tool

FORESEEN = (WorkError, CheckpointError, DataCorruptError, DataNotFoundError, PredictError)
ROWS = 10  # of the card's table, on the terminal


def main(tool: Tool, argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    parser, deciding = _parser(tool)
    arguments = parser.parse_args(argv)
    command = partial(arguments.run, tool, arguments, deciding)
    return exit_status(tool.program, command, FORESEEN, "the same command goes on")


def run(tool: Tool, arguments: argparse.Namespace, deciding: Sequence[argparse.Action]) -> None:
    """Work on an input, or a shard of it; the same command goes on where it was."""
    names = [field.name for field in fields(tool.settings)]
    settings = tool.settings(*(getattr(arguments, name) for name in names))
    number, count = shards.shard_of(arguments.shard, os.environ)
    out = shards.output_folder(arguments.out, arguments.inputs)
    source = open_source(arguments.inputs, arguments.image_root)
    device = str(resolve_device(arguments.device))
    path = shards.journal_path(out, number, count)
    own_folder(path.parent)
    with locked(path.with_suffix(".lock")), closing(Journal(path)) as journal:
        opened = tool.open(arguments, settings, source, device)
        state = git_state()
        where = {a.dest: getattr(arguments, a.dest) for a in deciding if a.dest not in names}
        here = {
            "format": shards.FORMAT,
            "tool": f"{tool.program} {metadata.version('tenfold')}",
            "git_commit": state["git_commit"],
            "torch": torch.__version__,
            "device": device,
            "settings": asdict(settings),
            **opened.about,
            "input": source.describe(),
            "shard": [number, count],
            "where": where | {"git_dirty": state["git_dirty"]},
        }
        replayed = journal.replay()
        header = next(replayed, None)
        if header is None:
            journal.append(header := here)
        shards.check_header(header, here, out)
        job = _job(tool, source, settings, number, count, arguments.workers, arguments.max_bad)
        facts = None
        with Meter(source.size) as meter:
            tally = work(job, opened.judge, opened.decoder, journal, replayed, meter.show)
            rate = meter.rate(tally)
            if count == 1 and all((out / n).exists() for n in finishing.outputs(tool, source)):
                facts = read_json(out / finishing.CARD_JSON)
            elif count == 1:
                said = _said(tool, header, deciding)
                facts = finishing.finish(tool, out, job, header, said, [path], meter.writing)
    if journal.cut:
        print(f"the journal's end was torn: {journal.cut:,} bytes were cut and worked out again")
    print_tally(tally, rate, tool.log)
    if facts is not None:
        _report(tool, facts, out, source)
    else:
        advice = f"when all {count} have ended: {tool.program} merge --out {printable(str(out))}"
        print(f"shard {number}/{count} has ended; {advice}")


def merge(tool: Tool, arguments: argparse.Namespace, deciding: Sequence[argparse.Action]) -> None:
    """Join shards that have ended to what one process would have written."""
    folders = [Path(folder) for folder in arguments.shards or [arguments.out]]
    header, journals = shards.gather(folders)
    where, settings = header["where"], tool.settings(**header["settings"])
    out = shards.output_folder(arguments.out, where["inputs"])
    source = open_source(where["inputs"], where["image_root"])
    shards.check_header(header, header | {"input": source.describe()}, out)
    lock = own_folder(out / shards.WORK) / "merge.lock"
    with locked(lock), Meter(None) as meter:
        job, said = _job(tool, source, settings), _said(tool, header, deciding)
        facts = finishing.finish(tool, out, job, header, said, journals, meter.writing)
    _report(tool, facts, out, source)


def _job(tool: Tool, source: Source, settings: Any, *share: Any) -> Job:
    """The work on a share of the input: see `Job`; by default all of it."""

    def fault_of(record: Record, row: Row) -> str:
        return tool.fault_of(record, row, settings)

    return Job(source, settings.batch_size, settings.limit, fault_of, *share)


def _said(tool: Tool, header: Any, deciding: Sequence[argparse.Action]) -> str:
    """The command that makes a result, without what does not change it: shards, workers, the place
    of the output."""
    values = header["settings"] | header["where"] | {"device": header["device"]}
    words = [tool.program, tool.verb, *values["inputs"]]
    for action in deciding:
        value = values[action.dest]
        if not action.option_strings or value in (None, action.default):
            continue
        several = value if isinstance(value, list) else [value]
        flag = action.option_strings[0]
        words += [flag] if action.nargs == 0 else [w for v in several for w in (flag, str(v))]
    return shlex.join(words)


def _report(tool: Tool, facts: dict[str, Any], out: Path, source: Source) -> None:
    card = tool.card(facts)
    table = Table(card.columns[0], box=box.SIMPLE_HEAD)
    for name in card.columns[1:]:
        table.add_column(name, justify="right")
    for row in card.rows[:ROWS]:
        table.add_row(*map(printable, row))
    Console(highlight=False, markup=False).print(table)
    for line in [*card.items, card.summary[0]]:
        print(printable(line))
    print(f"{printable(str(out / tool.output(source)))}; {finishing.CARD}, {finishing.SHEET}")


def _parser(tool: Tool) -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """The parser, and the arguments that decide a result."""
    parser = argparse.ArgumentParser(tool.program, description=tool.about)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], name: str, text: str) -> Callable[..., argparse.Action]:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made.set_defaults(run=run)
        return made.add_argument

    plain = command(run, tool.verb, f"{tool.does}; the same command goes on where it was stopped")
    deciding: list[argparse.Action] = []

    def add(*names: str, **how: Any) -> None:
        deciding.append(plain(*names, **how))

    def option(name: str, kind: Callable[[str], Any], text: str) -> None:
        usual, flag = getattr(tool.settings, name), f"--{name.replace('_', '-')}"
        add(flag, type=kind, default=usual, metavar="N", help=f"{text}; by default {usual!r}")

    add("inputs", nargs="+", metavar="INPUT", help=".json, .jsonl, folder, or tar shards")
    plain("--out", required=True, metavar="DIR", help="folder of its own for all outputs")
    add("--image-root", metavar="DIR", help="of a .json or .jsonl; by default the file's folder")
    tool.options(add, option)
    option("batch_size", bounded(int, 1, 10**5), "entries that go through the models together")
    option("seed", bounded(int, 0, 2**63 - 1), "of all that is drawn by lot")
    option("limit", bounded(int, 1, 10**15), "entries that are read")
    option("max_pixels", bounded(int, 1, 10**9), "of an image; larger ones are left out")
    option("licence", str, "of the data, for the card")
    text = "share of unusable entries that is no error; by default %(default)s"
    plain("--max-bad", type=bounded(float, 0, 1), default=Job.most_bad, metavar="SHARE", help=text)
    processes = min(8, os.cpu_count() or 1)
    text = "processes that decode images; by default %(default)s"
    plain("--workers", type=bounded(int, 0, 1000), default=processes, metavar="N", help=text)
    text = "work on the i-th of n shards, from 0 on; by default as SLURM's array says"
    plain("--shard", metavar="i/n", help=text)
    add("--device", default="auto", help="of the models: auto, cpu, cuda")

    plain = command(merge, "merge", "join shards that have ended to what one process writes")
    plain("shards", nargs="*", metavar="DIR", help="their --out, if it is not the same")
    plain("--out", required=True, metavar="DIR", help=f"as of `{tool.verb}`")
    return parser, deciding
