"""The systems that are compared, each measured in the same way on the same files and questions."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.search.questions import Hit
from benchmarks.search.semble_peer import ask
from benchmarks.speed.protocol import Worker
from methods.cascode.search.cli import Bars
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import Options, build_index
from methods.cascode.search.models import Decision, Settings, load
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
OUR_VARIANTS = {
    "ours, words only": 1.0,
    "ours, vectors only": 0.0,
    "ours, vectors and words (the default)": Request.lexical,
}


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


def run_ours(task: Task, home: Path, source: str) -> list[Measured]:
    """The tool of methods/cascode/search, on an index that is built anew in `home`."""
    if (home / DATABASE).exists():
        shutil.rmtree(home)
    settings = Settings(source)
    model = load(settings)
    with Bars() as bars:
        report = build_index(Options(task.repository, home), model, settings, bars.show)
    searcher = Searcher(Index(home), model, Decision(False, "first stage"))
    measured = []
    for name, lexical in OUR_VARIANTS.items():

        def search(text: str, lexical: float = lexical) -> Sequence[Result]:
            return searcher.search(Request(text, top=task.top, lexical=lexical)).results

        found, seconds = ask(search, task.questions, task.repeats)
        hits = [[_spans(result) for result in results] for results in found]
        titles = [f"{r[0].path}:{r[0].start_line} {r[0].name}" if r else "nothing" for r in found]
        index = report.seconds, report.bytes, report.texts, report.files
        measured.append(Measured(name, hits, seconds, *index, titles))
    return measured


def _spans(result: Result) -> Hit:
    """All places of a result; of further ones the first line is known, which is in the function."""
    also = [(path, line, line) for path, line in result.also]
    return [(result.path, result.start_line, result.end_line), *also]
