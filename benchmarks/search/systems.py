"""The systems that are compared, each measured in the same way on the same files and questions."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.search.questions import Hit
from benchmarks.search.semble_peer import ask
from benchmarks.speed.protocol import Worker
from methods.cascode.lexical import subtokens
from methods.cascode.search.cli import Bars
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import Options, build_index
from methods.cascode.search.models import Decision, Settings, in_precision, load
from methods.cascode.search.query import Request, Result, Searcher
from methods.cascode.search.store import DATABASE
from shared.checkpoints.pretrained_text import model_folder

ROOT = Path(__file__).resolve().parents[2]
PEER = {
    "requirement": "semble==0.7.0",
    "dependencies": (
        "model2vec==0.10.0",
        "orjson",
        "pathspec",
        "questionary",
        "scikit-learn",  # model2vec's distillation imports it
        "semble-grammars==0.1.2",
        "skeletoken==0.6.1",
        "transformers==5.24.0",
        "vicinity==0.4.6",
    ),
}
SEMBLE_VARIANTS = {"semble, words only": {"alpha": 0.0}, "semble (its default: hybrid)": {}}
WORDS_ONLY = 1e3  # a weight beside which similarities vanish
OUR_VARIANTS = {  # weight of the words, by the text that is encoded
    "short": {"ours, --fast": Request.lexical},
    "both": {
        "ours, words only": WORDS_ONLY,
        "ours, vectors only": 0.0,
        "ours (the default)": Request.lexical,
    },
}
RIPGREP = "ripgrep, the words of the question"
# In a process of its own, as a child begins with the memory that its parent has.
_MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
took = time.perf_counter() - start
print(status, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
MOST_LINES = 200_000  # of ripgrep's that are ranked


@dataclass(frozen=True)
class Measured:
    """One system on all questions."""

    name: str
    hits: Sequence[Sequence[Hit]]  # of each question, best first
    seconds: Sequence[float]  # of every warm query
    index_seconds: float  # from files to an index on disk, with the model already loaded
    index_bytes: int
    items: int  # functions or chunks
    files: int
    titles: Sequence[str]  # what to print of each question's first hit


@dataclass(frozen=True)
class Task:
    repository: Path
    questions: Sequence[str]
    top: int  # hits a question
    repeats: int  # how often each is timed


def run_semble(
    task: Task, python: Path, source: str, static: Path, log: Path
) -> tuple[list[Measured], dict[str, Any]]:
    """semble in an environment of its own, and facts about it; `static` is where the static model
    is, or will be made of the transformer `source`."""
    with tempfile.TemporaryDirectory(prefix="tenfold-semble-") as work:
        settings = {
            **vars(task),
            "repository": str(task.repository.resolve()),
            "model": str(model_folder(source)),
            "static": str(static.resolve()),
            "work": work,
            "variants": SEMBLE_VARIANTS,
        }
        peer = Worker(python, "benchmarks.search.semble_peer:Peer", settings, ROOT, log)
        try:
            answer = peer.ask("measure")
        finally:
            peer.close()
    index = {key: answer[key] for key in ("index_seconds", "index_bytes", "items", "files")}
    measured = []
    for name, (found, seconds) in answer.pop("variants").items():
        hits = [[[tuple(span)] for span in question] for question in found]
        titles = ["{}:{}-{}".format(*spans[0]) if spans else "nothing" for spans in found]
        measured.append(Measured(name, hits, seconds, titles=titles, **index))
    return measured, answer


def run_ours(task: Task, home: Path, source: str, text: str = "both") -> list[Measured]:
    """The tool of methods/cascode/search, on an index that is built anew in `home`."""
    if (home / DATABASE).exists():
        shutil.rmtree(home)
    settings = Settings(source)
    model, strong = load(settings, light=True), in_precision(settings, load)
    options = Options(task.repository, home, text)
    with Bars() as bars:
        report = build_index(options, model, settings, bars.show, strong)
    searcher = Searcher(Index(home), model, Decision(False, "first stage"))
    measured = []
    for name, lexical in OUR_VARIANTS[text].items():

        def search(text: str, lexical: float = lexical) -> Sequence[Result]:
            return searcher.search(Request(text, top=task.top, lexical=lexical)).results

        found, seconds = ask(search, task.questions, task.repeats)
        hits = [[_spans(result) for result in results] for results in found]
        titles = [f"{r[0].path}:{r[0].start_line} {r[0].name}" if r else "nothing" for r in found]
        index = report.seconds, report.bytes, report.functions, report.files
        measured.append(Measured(name, hits, seconds, *index, titles))
    return measured


def _spans(result: Result) -> Hit:
    """All places of a result; of further ones the first line is known, which is in the function."""
    also = [(path, line, line) for path, line in result.also]
    return [(result.path, result.start_line, result.end_line), *also]


def run_ripgrep(task: Task) -> Measured:
    """What a user finds with `rg`: the lines that have most of the question's words, of equal ones
    those in files that have most of them; one line a file, which the user opens there."""
    found, seconds = ask(lambda text: _ripgrep(text, task), task.questions, 1)
    hits = [[[(path, line, line)] for path, line in lines] for lines in found]
    titles = ["{}:{}".format(*lines[0]) if lines else "nothing" for lines in found]
    return Measured(RIPGREP, hits, seconds, 0.0, 0, 0, 0, titles)


def _ripgrep(text: str, task: Task) -> list[tuple[str, int]]:
    words = sorted(set(subtokens(text)))
    patterns = [part for word in words for part in ("-e", re.escape(word))]
    command = ["rg", "--ignore-case", "--json", "--type", "py", *patterns, "."]
    done = subprocess.run(command, cwd=task.repository, capture_output=True, text=True)
    events = (json.loads(line) for line in done.stdout.splitlines()[:MOST_LINES])
    of_files: dict[str, set[str]] = {}
    best: dict[str, tuple[int, int]] = {}  # words of the line, and minus its number
    for event in events:
        if event["type"] == "match":
            data = event["data"]
            path = data["path"]["text"].removeprefix("./")
            matched = {part["match"].get("text", "").lower() for part in data["submatches"]}
            of_files.setdefault(path, set()).update(matched)
            line = (len(matched), -data["line_number"])
            best[path] = max(best.get(path, (0, 0)), line)
    order = sorted(best, key=lambda path: (-best[path][0], -len(of_files[path]), path))
    return [(path, -best[path][1]) for path in order[: task.top]]


def cold(arguments: Sequence[str], repeats: int = 5) -> tuple[float, float]:
    """Median seconds, and most MB, of the tool in fresh processes; ValueError where one fails."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "methods.cascode.search"]
    seconds, most = [], 0.0
    for _ in range(repeats):
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
        status, took, memory = map(float, done.stdout.split())
        if status:
            raise ValueError(f"`tenfold-search {' '.join(arguments)}` failed: {done.stderr}")
        seconds.append(took)
        most = max(most, memory * (1 if sys.platform == "darwin" else 1024) / 1e6)
    return median(seconds), most
