"""The console script: `tenfold-search index DIR | query WORDS | serve`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.syntax import Syntax
from rich.text import Text

from methods.cascode.extraction import LANGUAGES
from methods.cascode.search import models, store
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import LIMIT, TEXTS, Options, build_index, examples
from methods.cascode.search.models import PACKAGE, Settings, decide, load
from methods.cascode.search.page import PORT, PageServer
from methods.cascode.search.query import Answer, Request, Result, Searcher, marked
from methods.cascode.search.store import FOLDER, SearchError
from shared.console import bounded, exit_status
from shared.showing import printable

PROGRAM = "tenfold-search"
MOST = 10_000  # results, and lines of each
MOST_BYTES = 10**12
Add = Callable[..., argparse.Action]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    command = partial(arguments.run, arguments)
    return exit_status(PROGRAM, command, (SearchError,), "`index` goes on where it was")


def index(arguments: argparse.Namespace) -> None:
    """Build an index, or bring it up to date."""
    root = _resolved(arguments.folder)
    if not root.is_dir():
        raise SearchError(f"{root} is no folder: name the folder whose code is to be searched")
    home = _resolved(arguments.index) if arguments.index else root / FOLDER
    source, precision = _source(arguments.model), arguments.precision
    if precision == "auto":
        precision = store.precision_of(home, source) or precision
    settings = Settings(source, precision, arguments.pooling, not arguments.unnormalized)
    model = load(settings)
    options = Options(root, home, arguments.text, arguments.max_bytes)
    with Bars() as bars:
        report = build_index(options, model, settings, bars.show)
    rows = [
        ("files of code", f"{report.seen:,}", ""),
        ("  indexed", f"{report.files:,}", f"{report.extracted:,} new or changed"),
    ]
    for reason, paths in sorted(report.skipped.items()):
        rows.append((f"  {reason}", f"{len(paths):,}", examples(paths)))
    rows += [
        ("functions", f"{report.functions:,}", f"{report.texts:,} different ones"),
        ("  encoded now", f"{report.encoded:,}", ""),
        ("seconds", f"{report.seconds:.1f}", "nothing had changed" if report.unchanged else ""),
        ("index", f"{report.bytes / 1e6:.1f} MB", str(home)),
    ]
    width = max(len(name) for name, _, _ in rows)
    for name, value, remark in rows:
        print(f"{name:{width}}  {value:>10}  {printable(remark)}".rstrip())
    for note in report.notes:
        print(f"note: {printable(note)}")


def query(arguments: argparse.Namespace) -> None:
    """Print the functions that fit a query."""
    searcher = _searcher(arguments, _home(arguments))
    answer = searcher.search(_request(arguments, " ".join(arguments.words)))
    if arguments.json:
        facts = {"index": str(searcher.index.home), "model": searcher.model.name}
        print(json.dumps(facts | asdict(answer), indent=1))
    else:
        print_answer(answer, Console(highlight=False, markup=False, emoji=False))


def serve(arguments: argparse.Namespace) -> None:
    """Answer queries on a local page until interrupted."""
    home = _home(arguments)
    newest = _Newest(lambda: _searcher(arguments, home))
    with PageServer(newest, _request(arguments, ""), arguments.port) as server:
        reason = printable(newest().decision.reason)
        print(f"{server.url}  ({reason}; Ctrl-C ends it)", flush=True)
        server.serve_forever()


def print_answer(answer: Answer, console: Console) -> None:
    """Results with their code; words of the query are marked on a terminal."""
    for result in answer.results:
        head = Text.assemble(
            (f"{printable(result.path)}:{result.start_line}", "bold cyan"),
            f"  {printable(result.name)}  ",
            (f"{result.language}  score {result.score:.2f}", "dim"),
            (f" (similarity {result.similarity:.3f}, words {result.words:.1f}", "dim"),
            (f", re-ranked {result.judged:+.2f})" if result.judged is not None else ")", "dim"),
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
    ranking = printable(answer.ranking)
    console.print(f"{ranking}; {answer.seconds * 1000:.0f} ms", style="dim", soft_wrap=True)


def _coloured(result: Result, words: frozenset[str]) -> list[Text]:
    lines = [line for _, line in result.lines]
    if not lines:
        return []
    from pygments.lexers import get_lexer_by_name

    options = {"startinline": True} if result.language == "php" else {}
    lexer = get_lexer_by_name(result.language, stripnl=False, **options)
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
    start = _resolved(arguments.dir)
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
    model = load(Settings(**facts))
    return Searcher(opened, model, decide(arguments.rerank, model, facts["source"]))


def _request(arguments: argparse.Namespace, text: str) -> Request:
    return Request(text, *(getattr(arguments, field.name) for field in fields(Request)[1:]))


def _source(source: str) -> str:
    return source if source.startswith(PACKAGE) else str(_resolved(os.path.expanduser(source)))


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))


class _Newest:
    """The searcher of an index, opened again when another index has taken its place."""

    def __init__(self, opened: Callable[[], Searcher]) -> None:
        self._open, self._searcher, self._stamp = opened, opened(), 0

    def __call__(self) -> Searcher:
        index = self._searcher.index
        try:
            if (stamp := index.path.stat().st_mtime_ns) != self._stamp:
                self._stamp = stamp
                with store.reading(index.home) as connection:
                    manifest = store.read_manifest(connection, index.home)
                if manifest != index.manifest:  # else a run has kept what it has done so far
                    self._searcher = self._open()
        except (OSError, SearchError) as error:
            reason = printable(str(error))
            print(f"{PROGRAM}: the old index stays in use: {reason}", file=sys.stderr)
        return self._searcher


class Bars(Progress):
    """One bar for each thing that is being done, on a terminal's error stream."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._bars: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            self._bars[what] = self.add_task(what, total=total)
        self.update(self._bars[what], completed=done, total=total)


def _parser() -> argparse.ArgumentParser:
    usual, whole = "by default %(default)s", bounded(int, 1, MOST)
    searching = argparse.ArgumentParser(add_help=False)
    add: Add = searching.add_argument
    add("--dir", default=".", help="folder that was indexed, or one below it; by default this one")
    add("--index", metavar="PATH", help="place of the index, if it is not in the folder")
    add("--model", metavar="SOURCE", help="where the model of the index is now, if it has moved")
    add("--top", type=whole, default=Request.top, metavar="N", help=f"results; {usual}")
    text = f"so many are re-ranked; {usual}"
    add("--k", type=whole, default=Request.depth, dest="depth", metavar="K", help=text)
    text = "measured: where it is known to help"
    add("--rerank", choices=models.RERANK, default="measured", help=text)
    add("--language", choices=LANGUAGES, help="only this one")
    add("--path", metavar="GLOB", help="only these files, or those below this folder")
    text = f"share of BM25 in the score, 0 to 1; {usual}"
    add("--lexical", type=bounded(float, 0, 1), default=Request.lexical, metavar="W", help=text)
    whole, text = bounded(int, 0, MOST), f"lines shown of a function at most; {usual}"
    add("--context", type=whole, default=Request.lines, dest="lines", metavar="N", help=text)

    parser = argparse.ArgumentParser(PROGRAM, description="Search code by what its functions do.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], text: str, *parents: argparse.ArgumentParser) -> Add:
        about = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(run.__name__, help=text, description=about, parents=parents)
        made.set_defaults(run=run)
        return made.add_argument

    add = command(index, "index a folder, or bring its index up to date")
    add("folder", metavar="DIR", help="folder of code")
    add("--index", metavar="PATH", help=f"place of the index; by default DIR/{FOLDER}")
    text = f"checkpoint of ours, Hugging Face folder, or package:NAME; {usual}"
    add("--model", metavar="SOURCE", default=models.DEFAULT, help=text)
    add("--text", choices=TEXTS, default=TEXTS[0], help=f"what is encoded; {usual}")
    whole, text = bounded(int, 1, MOST_BYTES), f"larger files are left out; {usual}"
    add("--max-bytes", type=whole, default=LIMIT, metavar="N", help=text)
    add("--precision", choices=models.PRECISIONS, default="auto", help="auto: the faster one")
    add("--pooling", choices=store.POOLINGS, default="mean", help="of a Hugging Face folder")
    add("--unnormalized", action="store_true", help="its vectors keep their length")

    add = command(query, "print the functions that fit a query", searching)
    add("words", nargs="+", metavar="WORDS", help="what the code should do")
    add("--json", action="store_true", help="for programs")

    add = command(serve, "answer queries on a page for this machine alone", searching)
    whole = bounded(int, 0, 65_535)
    add("--port", type=whole, default=PORT, metavar="N", help=f"{usual}; 0: any")
    return parser
