"""The console script: `tenfold-search index DIR | query WORDS | serve`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.syntax import Syntax
from rich.text import Text

from methods.cascode.extraction import LANGUAGES
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import LIMIT, TEXTS, Options, Report, build_index, examples
from methods.cascode.search.loading import load
from methods.cascode.search.models import (
    DEFAULT,
    PACKAGE,
    PRECISIONS,
    RERANK,
    Settings,
    decide,
)
from methods.cascode.search.page import PORT, PageServer
from methods.cascode.search.query import (
    LEXICAL,
    Answer,
    Request,
    Result,
    Searcher,
    marked,
    printable,
    query_words,
)
from methods.cascode.search.store import (
    DATABASE,
    FOLDER,
    FOREIGN,
    POOLINGS,
    SearchError,
    precision_of,
    read_manifest,
    reading,
)

PROGRAM = "tenfold-search"
SHOWN_PLACES = 5
MOST = 10_000  # results, and lines of each
MOST_BYTES = 10**12


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 where it could not be done, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SearchError, ModuleNotFoundError, OSError) as error:
        print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{PROGRAM}: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; `index` goes on where it was", file=sys.stderr)
        return 130
    return 0


def index(arguments: argparse.Namespace) -> None:
    """Build an index, or bring it up to date."""
    root = _resolved(arguments.folder)
    if not root.is_dir():
        raise SearchError(f"{root} is no folder: name the folder whose code is to be searched")
    home = _resolved(arguments.index) if arguments.index else root / FOLDER
    source = _source(arguments.model)
    precision = arguments.precision
    if precision == "auto":
        precision = precision_of(home, source) or precision
    settings = Settings(source, precision, arguments.pooling, not arguments.unnormalized)
    model = load(settings)
    options = Options(root, home, arguments.text, arguments.max_bytes)
    with _Bars() as bars:
        report = build_index(options, model, settings, bars.show)
    print(*_summary(report, home), sep="\n")
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
    words = query_words(answer.query)
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
        for (number, _), line in zip(result.lines, _coloured(result, words), strict=True):
            console.print(Text.assemble((f"{number:6}  ", "dim"), line), soft_wrap=True)
        if result.also:
            places = [f"{printable(path)}:{line}" for path, line in result.also]
            console.print(f"    also {examples(places, SHOWN_PLACES)}", style="dim", soft_wrap=True)
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
        for piece in marked(line, words):
            start, end = end, end + len(piece.text)
            if piece.found:
                text.stylize("bold black on yellow", start, end)
    return texts


def _home(arguments: argparse.Namespace) -> Path:
    """Folder of the index that a command names, else the next one upwards."""
    if arguments.index:
        return _resolved(arguments.index)
    start = _resolved(arguments.dir)
    for folder in (start, *start.parents):
        if (folder / FOLDER / DATABASE).is_file():
            return folder / FOLDER
    return start / FOLDER


def _searcher(arguments: argparse.Namespace, home: Path) -> Searcher:
    opened = Index(home)
    built_by = opened.description.model
    facts = {field.name: built_by[field.name] for field in fields(Settings)}
    if arguments.model:
        facts["source"] = _source(arguments.model)
    elif not (opened.own or facts["source"].startswith(PACKAGE)):
        raise SearchError(
            f"the index in {home} {FOREIGN}, and no file that it names is loaded as a model "
            f"({facts['source']}): give --model SOURCE"
        )
    model = load(Settings(**facts))
    return Searcher(opened, model, decide(arguments.rerank, model, facts["source"]))


def _request(arguments: argparse.Namespace, text: str) -> Request:
    return Request(
        query=text,
        top=arguments.top,
        depth=arguments.k,
        language=arguments.language,
        path=arguments.path,
        lexical=arguments.lexical,
        lines=arguments.context,
    )


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
                with reading(index.home) as connection:
                    manifest = read_manifest(connection, index.home)
                if manifest != index.manifest:  # else a run has kept what it has done so far
                    self._searcher = self._open()
        except (OSError, SearchError) as error:
            reason = printable(str(error))
            print(f"{PROGRAM}: the old index stays in use: {reason}", file=sys.stderr)
        return self._searcher


class _Bars(Progress):
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


def _summary(report: Report, home: Path) -> Iterator[str]:
    """The lines of a small table."""
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
        yield f"{name:{width}}  {value:>10}  {printable(remark)}".rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Search code by what its functions do.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, index, "index a folder, or bring its index up to date")
    add = command.add_argument
    add("folder", metavar="DIR", help="folder of code")
    add("--index", metavar="PATH", help=f"place of the index; by default DIR/{FOLDER}")
    add(
        "--model",
        metavar="SOURCE",
        default=DEFAULT,
        help="checkpoint of ours, Hugging Face folder, or package:NAME; by default %(default)s",
    )
    add("--text", choices=TEXTS, default=TEXTS[0], help="what is encoded; by default %(default)s")
    add(
        "--max-bytes",
        type=_whole(1, MOST_BYTES),
        default=LIMIT,
        metavar="N",
        help="larger files are left out; by default %(default)s",
    )
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="auto: the faster one")
    add("--pooling", choices=POOLINGS, default=POOLINGS[0], help="of a Hugging Face folder")
    add("--unnormalized", action="store_true", help="its vectors keep their length")

    command = _command(commands, query, "print the functions that fit a query")
    command.add_argument("words", nargs="+", metavar="WORDS", help="what the code should do")
    command.add_argument("--json", action="store_true", help="for programs")
    _add_search_options(command)

    command = _command(commands, serve, "answer queries on a page for this machine alone")
    command.add_argument(
        "--port",
        type=_whole(0, 65_535),
        default=PORT,
        metavar="N",
        help="by default %(default)s; 0: any",
    )
    _add_search_options(command)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    run: Callable[[argparse.Namespace], None],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _add_search_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--dir", default=".", help="folder that was indexed, or one below it; by default this one")
    add("--index", metavar="PATH", help="place of the index, if it is not in the folder")
    add("--model", metavar="SOURCE", help="where the model of the index is now, if it has moved")
    number = _whole(1, MOST)
    add("--top", type=number, default=10, metavar="N", help="results; by default %(default)s")
    add("--k", type=number, default=10, help="so many are re-ranked; by default %(default)s")
    add("--rerank", choices=RERANK, default=RERANK[0], help="measured: where it is known to help")
    add("--language", choices=LANGUAGES, help="only this one")
    add("--path", metavar="GLOB", help="only these files, or those below this folder")
    add(
        "--lexical",
        type=_share,
        default=LEXICAL,
        metavar="W",
        help="share of BM25 in the score, 0 to 1; by default %(default)s",
    )
    add(
        "--context",
        type=_whole(0, MOST),
        default=12,
        metavar="N",
        help="lines shown of a function at most; by default %(default)s",
    )


def _whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a number from `least` to `most`."""

    def number(text: str) -> int:
        if text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from {least} to {most}")

    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return share
