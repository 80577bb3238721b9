"""The console script: `tenfold-search index DIR | query WORDS | serve | mcp`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from methods.cascode.search import models, store
from methods.cascode.search.index import KNOWN, Index
from methods.cascode.search.indexing import LIMIT, TEXTS, Options, build_index, examples
from methods.cascode.search.models import PACKAGE, Encoder, Settings, decide, in_precision, load
from methods.cascode.search.query import (
    KIND_CHOICES,
    Answer,
    Request,
    Result,
    Searcher,
    marked,
)
from methods.cascode.search.refreshing import Fresh, refresh
from methods.cascode.search.store import FOLDER, SearchError
from methods.cascode.search.walking import Scope
from shared.console import bounded, exit_status
from shared.showing import printable

if TYPE_CHECKING:  # only what draws waits for it
    from rich.console import Console
    from rich.text import Text

PROGRAM = "tenfold-search"
MOST = 10_000  # results, and lines of each
MOST_BYTES = 10**12
SAID = 5.0  # seconds between two lines of progress
CHECKED = 2.0  # seconds in which a folder is not compared again
PORT = 8356
LEXERS = {"shell": "bash"}
PLURALS = {"class": "classes", "module": "texts on modules"}
Add = Callable[..., argparse.Action]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where nothing is found, 2 where it cannot be done."""
    arguments = _parser().parse_args(argv)
    found: list[bool | None] = []
    again = "`index` goes on where it was"

    def run() -> None:
        found.append(arguments.run(arguments))

    if status := exit_status(PROGRAM, run, (SearchError,), again):
        return 2 if status == 1 else status
    return int(found == [False])


def index(arguments: argparse.Namespace) -> None:
    """Build an index, or bring it up to date."""
    folders = [_resolved(folder) for folder in arguments.folders]
    for folder in folders:
        if not folder.is_dir():
            raise SearchError(
                f"{folder} is no folder: name the folder whose code is to be searched"
            )
    root = Path(os.path.commonpath(folders))
    home = _resolved(arguments.index) if arguments.index else folders[0] / FOLDER
    inside = tuple("" if folder == root else str(folder.relative_to(root)) for folder in folders)
    scope = Scope(inside, tuple(arguments.include), tuple(arguments.exclude))
    settings = Settings(
        _source(arguments.model), arguments.precision, arguments.pooling, not arguments.unnormalized
    )
    model = load(settings, light=True)
    strong = None if find_spec("torch") is None else in_precision(settings, load)
    options = Options(root, home, arguments.text, arguments.max_bytes, scope)
    with Bars() as bars:
        report = build_index(options, model, settings, bars.show, strong)
    rows = [
        ("files", f"{report.seen:,}", ""),
        ("  indexed", f"{report.files:,}", f"{report.extracted:,} new or changed"),
    ]
    for reason, paths in sorted(report.skipped.items()):
        rows.append((f"  {reason}", f"{len(paths):,}", examples(paths)))
    unread = [f"{number:,} {suffix}" for suffix, number in report.unread.most_common()]
    if unread:
        rows.append(("not read", f"{report.unread.total():,}", examples(unread, most=6)))
    for kind, number in report.kinds.most_common():
        rows.append((PLURALS.get(kind, f"{kind}s"), f"{number:,}", ""))
    rows += [
        ("encoded now", f"{report.encoded:,}", f"in {report.precision}" * bool(report.encoded)),
        ("seconds", f"{report.seconds:.1f}", "nothing had changed" if report.unchanged else ""),
        ("index", f"{report.bytes / 1e6:.1f} MB", str(home)),
    ]
    width = max(len(name) for name, _, _ in rows)
    for name, value, remark in rows:
        print(f"{name:{width}}  {value:>10}  {printable(remark)}".rstrip())
    for note in report.notes:
        print(f"note: {printable(note)}")


def query(arguments: argparse.Namespace) -> bool:
    """Print the functions that fit a query."""
    searcher = _searcher(arguments, _home(arguments))
    request = _request(arguments, " ".join(arguments.words), searcher.index)
    answer = searcher.search(request)
    if arguments.json:
        facts = {"index": str(searcher.index.home), "model": searcher.model.name}
        facts["reranking"] = searcher.decision.reason
        print(json.dumps(facts | asdict(answer), indent=1))
    elif arguments.jsonl:
        for result in answer.results:
            print(json.dumps(asdict(result)))
    elif arguments.compact:
        for result in answer.results:
            place = f"{printable(result.path)}:{result.start_line}"
            print(f"{place} {result.score:.2f} {printable(result.name)}")
    else:
        from rich.console import Console

        print_answer(answer, searcher.index, Console(highlight=False, markup=False, emoji=False))
    if arguments.jsonl or arguments.compact:
        for note in answer.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
    return bool(answer.results)


def serve(arguments: argparse.Namespace) -> None:
    """Answer queries on a local page until interrupted."""
    from methods.cascode.search.page import PageServer

    newest = Newest(arguments)
    defaults = _request(arguments, "", newest().index)
    with PageServer(newest, defaults, arguments.port) as server:
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def mcp(arguments: argparse.Namespace) -> None:
    """Answer a program that speaks the Model Context Protocol, on its standard input."""
    from methods.cascode.search.protocol import server

    newest = Newest(arguments)
    server(newest, _request(arguments, "", newest().index)).run("stdio")


def print_answer(answer: Answer, index: Index, console: "Console") -> None:
    """Results with their code; on a terminal words of the query are marked, places are links."""
    from rich.text import Text

    for result in answer.results:
        link = f"bold cyan link {(index.root / result.path).as_uri()}" if index.own else "bold cyan"
        judged = f", re-ranked {result.judged:+.2f}" if result.judged is not None else ""
        head = Text.assemble(
            (f"{printable(result.path)}:{result.start_line}", link),
            f"  {printable(result.name)}  ",
            (f"{result.language} {result.kind}  score {result.score:.2f}{judged}", "dim"),
        )
        console.print(head, soft_wrap=True)
        if result.state:
            console.print(f"    this file is {result.state}: lines may have moved", style="yellow")
        for (number, _), line in zip(result.lines, _coloured(result, answer.words), strict=True):
            console.print(Text.assemble((f"{number:6}  ", "dim"), line), soft_wrap=True)
        if result.also:
            places = [f"{printable(path)}:{line}" for path, line in result.also]
            console.print(f"    also {examples(places, most=5)}", style="dim", soft_wrap=True)
        console.print()
    for note in answer.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if not answer.results:
        console.print("nothing found")
    if answer.ranking:
        console.print(printable(answer.ranking), style="dim", soft_wrap=True)


def _coloured(result: Result, words: frozenset[str]) -> "list[Text]":
    lines = [line for _, line in result.lines]
    if not lines:
        return []
    from pygments.lexers import get_lexer_by_name
    from rich.syntax import Syntax

    options = {"startinline": True} if result.language == "php" else {}
    name = LEXERS.get(result.language, result.language)
    lexer = get_lexer_by_name(name, stripnl=False, **options)
    coloured = Syntax("", lexer, theme="ansi_dark").highlight("\n".join(lines))
    texts = list(coloured.split("\n", allow_blank=True))[: len(lines)]
    for text, line in zip(texts, lines, strict=True):
        end = 0
        for piece, found in marked(line, words):
            start, end = end, end + len(piece)
            if found:
                text.stylize("bold black on yellow", start, end)
    return texts


def _home(arguments: argparse.Namespace) -> Path:
    """Folder of the index that a command names, else the next one upwards."""
    if arguments.index:
        return _resolved(arguments.index)
    start = _resolved(arguments.dir or ".")
    folders = (start, *start.parents)
    found = (folder for folder in folders if (folder / FOLDER / store.DATABASE).is_file())
    return next(found, start) / FOLDER


def _searcher(arguments: argparse.Namespace, home: Path) -> Searcher:
    opened = Index(home)
    built_by = opened.description["model"]
    facts = {field.name: built_by[field.name] for field in fields(Settings)}
    if arguments.model:
        facts["source"] = _source(arguments.model)
    elif not (opened.own or facts["source"].startswith(PACKAGE)):
        foreign = f"the index in {home} {store.FOREIGN}: no file that it names is loaded as a model"
        raise SearchError(f"{foreign} ({facts['source']}); give --model SOURCE")
    model = load(Settings(**facts), light=True)
    fresh = Fresh(opened) if arguments.no_refresh else refresh(opened, lambda: model)
    return _of(fresh, model, decide(arguments.rerank, model, facts["source"]))


def _of(fresh: Fresh, model: Encoder, decision: models.Decision) -> Searcher:
    return Searcher(fresh.index, model, decision, fresh.changed, fresh.notes)


def _request(arguments: argparse.Namespace, text: str, index: Index) -> Request:
    """What is asked for; a folder below the indexed one that is named limits it to itself."""
    names = [field.name for field in fields(Request)[1:]]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    request = Request(text, **given)
    folder = _resolved(arguments.dir) if arguments.dir else index.root
    if folder != index.root and folder.is_relative_to(index.root):
        return replace(request, folder=folder.relative_to(index.root).as_posix())
    return request


def _source(source: str) -> str:
    return source if source.startswith(PACKAGE) else str(_resolved(os.path.expanduser(source)))


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))


class Newest:
    """The searcher of an index that is brought up to date, and opened again when another index has
    taken its place; each at most every CHECKED seconds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._home = arguments, _home(arguments)
        self._searcher = _searcher(arguments, self._home)
        self._checked = time.monotonic()

    def __call__(self) -> Searcher:
        if time.monotonic() - self._checked >= CHECKED:
            try:
                self._bring_up_to_date()
            except (OSError, SearchError) as error:
                reason = printable(str(error))
                print(f"{PROGRAM}: the old index stays in use: {reason}", file=sys.stderr)
            self._checked = time.monotonic()
        return self._searcher

    def _bring_up_to_date(self) -> None:
        now = self._searcher
        with store.reading(self._home) as connection:
            manifest = store.read_manifest(connection, self._home)
        if manifest != now.index.manifest:
            self._searcher = _searcher(self._arguments, self._home)
        elif not self._arguments.no_refresh:
            fresh = refresh(now.index, lambda: now.model)
            if (fresh.index, fresh.changed) != (now.index, now.hidden):
                self._searcher = _of(fresh, now.model, now.decision)


class Bars:
    """One bar for each thing that is being done, on a terminal's error stream; else a line of it
    every few seconds."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
        self._lines, self._said = not console.is_terminal, time.monotonic()
        self._progress = Progress(*columns, console=console, disable=self._lines)
        self._bars: dict[str, object] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        if self._lines:
            if time.monotonic() - self._said >= SAID:
                print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)
                self._said = time.monotonic()
            return
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._bars[what], completed=done, total=total)  # type: ignore[arg-type]


def _parser() -> argparse.ArgumentParser:
    usual, whole = "by default %(default)s", bounded(int, 1, MOST)
    searching = argparse.ArgumentParser(add_help=False)
    add: Add = searching.add_argument
    text = "folder that was indexed, or one below it, to search that alone; by default this one"
    add("--dir", help=text)
    add("--index", metavar="PATH", help="place of the index, if it is not in the folder")
    add("--model", metavar="SOURCE", help="where the model of the index is now, if it has moved")
    add("--top", type=whole, default=Request.top, metavar="N", help=f"results; {usual}")
    text = f"so many are re-ranked; {usual}"
    add("--k", type=whole, default=Request.depth, dest="depth", metavar="K", help=text)
    text = "measured: where it is known to help"
    add("--rerank", choices=models.RERANK, default="measured", help=text)
    add("--kind", choices=KIND_CHOICES, default=Request.kind, help=f"what is searched; {usual}")
    add("--language", choices=sorted(KNOWN), metavar="NAME", help="only this one")
    add("--path", metavar="GLOB", help="only these files, or those below this folder")
    text = f"weight of the words beside the meaning, 0 to 1; {usual}"
    add("--lexical", type=bounded(float, 0, 1), default=Request.lexical, metavar="W", help=text)
    whole, text = bounded(int, 0, MOST), f"lines shown of a function at most; {usual}"
    add("--lines", type=whole, default=Request.lines, metavar="N", help=text)
    text = f"lines shown before and after a function; {usual}"
    add("--context", type=whole, default=Request.context, metavar="N", help=text)
    text = "answer from the index as it is, even if files have changed"
    add("--no-refresh", action="store_true", help=text)

    parser = argparse.ArgumentParser(PROGRAM, description="Search code by what its functions do.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {store.tool_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        run: Callable[..., object], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        about = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(run.__name__, help=text, description=about, parents=parents)
        made.set_defaults(run=run)
        return made

    add = command(index, "index a folder, or bring its index up to date").add_argument
    add("folders", nargs="+", metavar="DIR", help="folder of code; of several one index is made")
    add("--index", metavar="PATH", help=f"place of the index; by default {FOLDER} in the first DIR")
    text = "only files that match this pattern of .gitignore; may be repeated"
    add("--include", action="append", default=[], metavar="PATTERN", help=text)
    text = "no files or folders that match this one; may be repeated"
    add("--exclude", action="append", default=[], metavar="PATTERN", help=text)
    text = f"checkpoint of ours, Hugging Face folder, or package:NAME; {usual}"
    add("--model", metavar="SOURCE", default=models.DEFAULT, help=text)
    add("--text", choices=TEXTS, default=TEXTS[0], help=f"what is encoded; {usual}")
    text = "encode short descriptions alone: --text short"
    add("--fast", action="store_const", const="short", dest="text", help=text)
    whole, text = bounded(int, 1, MOST_BYTES), f"larger files are left out; {usual}"
    add("--max-bytes", type=whole, default=LIMIT, metavar="N", help=text)
    add("--precision", choices=models.PRECISIONS, default="auto", help="auto: the faster one")
    add("--pooling", choices=store.POOLINGS, default="mean", help="of a Hugging Face folder")
    add("--unnormalized", action="store_true", help="its vectors keep their length")

    made = command(query, "print the functions that fit a query", searching)
    add = made.add_argument
    add("words", nargs="+", metavar="WORDS", help="what the code should do")
    form = made.add_mutually_exclusive_group().add_argument
    form("--json", action="store_true", help="one object, for programs")
    form("--jsonl", action="store_true", help="one object a line, one line a result")
    form("--compact", action="store_true", help="one line a result: path:line score name")

    add = command(serve, "answer queries on a page for this machine alone", searching).add_argument
    whole = bounded(int, 0, 65_535)
    add("--port", type=whole, default=PORT, metavar="N", help=f"{usual}; 0: any")
    command(mcp, "answer a program that speaks the Model Context Protocol", searching)
    return parser
