"""The systems that are compared, each measured in the same way on the same files and questions."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.search.relevance import Hit
from benchmarks.speed.peer_environment import PeerPackage
from benchmarks.speed.protocol import SpeedError
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import Options, Report, build_index
from methods.cascode.search.models import load
from methods.cascode.search.models import Decision, Settings
from methods.cascode.search.query import Request, Result, Searcher
from methods.cascode.search.store import DATABASE
from shared.checkpoints.pretrained_text import model_folder

ROOT = Path(__file__).resolve().parents[2]
PEER = PeerPackage(
    requirement="semble==0.7.0",
    dependencies=(
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
)
SEMBLE_VARIANTS = {
    "semble, words only": {"alpha": 0.0},
    "semble (its default: hybrid)": {},
}
OUR_VARIANTS = {
    "ours, words only": 1.0,
    "ours, vectors only": 0.0,
    "ours, vectors and words (the default)": Request.lexical,
}


@dataclass(frozen=True)
class Measured:
    """One system on all questions.

    Attributes:
        hits: of each question, best first. seconds: of every warm query.
        index_seconds: from files to an index on disk, with the model already loaded.
        index_bytes: of the index on disk. items: functions or chunks in it. files: that it read.
        titles: what to print of each question's first hit.
    """

    name: str
    hits: Sequence[Sequence[Hit]]
    seconds: Sequence[float]
    index_seconds: float
    index_bytes: int
    items: int
    files: int
    titles: Sequence[str]


@dataclass(frozen=True)
class Task:
    """Attributes: `repository`, the folder to search; `questions`; `top`, hits a question;
    `repeats`, how often each is timed."""

    repository: Path
    questions: Sequence[str]
    top: int
    repeats: int


def run_semble(
    task: Task, python: Path, source: str, static: Path, log: Path
) -> tuple[list[Measured], dict[str, object]]:
    """semble in an environment of its own, and facts about it.

    Args:
        python: of that environment. source: of the transformer that the static model is made of.
        static: where the static model is, or will be. log: takes what semble prints.

    Raises:
        SpeedError: it failed; the message names the log.
    """
    with tempfile.TemporaryDirectory(prefix="tenfold-semble-") as work:
        settings = {
            "repository": str(task.repository.resolve()),
            "model": str(model_folder(source)),
            "static": str(static.resolve()),
            "work": work,
            "questions": list(task.questions),
            "top": task.top,
            "repeats": task.repeats,
            "variants": SEMBLE_VARIANTS,
        }
        command = [str(python), "-m", "benchmarks.search.semble_peer", json.dumps(settings)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with log.open("w") as errors:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
    if done.returncode:
        raise SpeedError(f"semble failed, see {log}:\n{log.read_text()[-1000:].strip()}")
    answer = json.loads(done.stdout)
    measured = []
    for name, found in answer.pop("variants").items():
        hits = [[[tuple(span)] for span in question] for question in found["hits"]]
        titles = [f"{h[0][0][0]}:{h[0][0][1]}-{h[0][0][2]}" if h else "nothing" for h in hits]
        index = {key: answer[key] for key in ("index_seconds", "index_bytes", "items", "files")}
        measured.append(Measured(name, hits, found["seconds"], titles=titles, **index))
    return measured, answer


def run_ours(task: Task, home: Path, source: str) -> list[Measured]:
    """The tool of methods/cascode/search, on an index that is built anew.

    Args:
        home: of the index; one that is there is removed. source: of the model.
    """
    if (home / DATABASE).exists():
        shutil.rmtree(home)
    settings = Settings(source)
    model = load(settings)
    report = build_index(Options(task.repository, home), model, settings, show)
    searcher = Searcher(Index(home), model, Decision(False, "first stage"))
    return [_ask(task, name, searcher, report, lexical) for name, lexical in OUR_VARIANTS.items()]


def _ask(task: Task, name: str, searcher: Searcher, report: Report, lexical: float) -> Measured:
    """The first time of each question is no measure and not counted."""
    requests = [Request(text, top=task.top, lexical=lexical) for text in task.questions]
    found = [searcher.search(request).results for request in requests]
    seconds = []
    for _ in range(task.repeats):
        for request in requests:
            start = time.perf_counter()
            searcher.search(request)
            seconds.append(time.perf_counter() - start)
    return Measured(
        name,
        [[_spans(result) for result in results] for results in found],
        seconds,
        report.seconds,
        report.bytes,
        report.texts,
        report.files,
        [f"{r[0].path}:{r[0].start_line} {r[0].name}" if r else "nothing" for r in found],
    )


def _spans(result: Result) -> Hit:
    """All places of a result; of further ones the first line is known, which is in the function."""
    also = [(path, line, line) for path, line in result.also]
    return [(result.path, result.start_line, result.end_line), *also]


def show(what: str, done: int, total: int) -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{what} {done}/{total}   ", end="", file=sys.stderr, flush=True)
