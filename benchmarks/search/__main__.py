"""Our search tool beside `semble` and `ripgrep`: `python -m benchmarks.search --out DIR`.

All search the same files, the standard library of the running Python, and are asked the same plain
questions of questions.json, whose answers are graded functions. How hits become NDCG@10 is said in
questions.py. Systems run one after the other, never at the same time. Every other question, the
first one of them, is for validation: our weights were chosen on those, and the others judge.
before.json holds what the version before, with one text a function, got on them: NDCG of each
question as this program's predecessor graded its default at that commit.

semble's own model, potion-code-16M-v2, has to be downloaded from a model hub. Here it gets a static
model that its authors' `model2vec` distils, with its defaults, from the weights that our side uses,
all-MiniLM-L6-v2. That model was not made for code, so semble with its own may do better;
`semble, words only` does not depend on it.

Then what a user waits for: the first query of a fresh process, and `index` after a change.
Writes what it prints to DIR/search.md, too.
"""

import argparse
import hashlib
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.search import systems
from benchmarks.search.questions import (
    DEPTH,
    QUESTIONS,
    Question,
    copy_library,
    grades,
    load_questions,
    ndcg,
)
from benchmarks.speed import peer_environment
from benchmarks.speed.__main__ import machine
from benchmarks.speed.protocol import SpeedError
from benchmarks.statistics import bootstrap_means
from methods.cascode.search.models import DEFAULT
from methods.cascode.search.store import SearchError
from shared.files import read_json
from shared.showing import table

THEIRS, OURS = list(systems.SEMBLE_VARIANTS)[-1], list(systems.OUR_VARIANTS["both"])[-1]
BEFORE = Path(__file__).with_name("before.json")


class Row(NamedTuple):
    """A system's figures."""

    measured: systems.Measured
    ndcg: np.ndarray  # (Q,) of each question, from 0 to 1
    first: np.ndarray  # (Q,) whether its first hit has grade 2
    median_ms: float  # of a warm query
    slow_ms: float  # 95th percentile


def evaluate(measured: systems.Measured, questions: Sequence[Question]) -> Row:
    """Grade a system's hits."""
    rankings = [grades(h, q) for h, q in zip(measured.hits, questions, strict=True)]
    quality = [ndcg(r, q) for r, q in zip(rankings, questions, strict=True)]
    median, slow = np.percentile(measured.seconds, [50, 95])
    first = np.array([ranking[:1] == [2] for ranking in rankings])
    return Row(measured, np.array(quality), first, 1000 * float(median), 1000 * float(slow))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the mean over questions (percentiles)."""
    low, high = np.percentile(bootstrap_means(values[None].astype(float)), [2.5, 97.5])
    return float(low), float(high)


def system_table(rows: Sequence[Row]) -> str:
    """All systems, a line each."""
    quality = f"NDCG@{DEPTH}: validation", "test (95% interval)"
    header = ["system", *quality, "hit@1", "index s", "items", "index MB"]
    lines = []
    for row in rows:
        judging = row.ndcg[1::2]
        low, high = interval(judging)
        found = row.measured
        test = f"{judging.mean():.3f} ({low:.3f} to {high:.3f})"
        figures = f"{row.ndcg[::2].mean():.3f}", test, f"{row.first.mean():.2f}"
        size = f"{found.items:,}", f"{found.index_bytes / 1e6:.1f}"
        warm = f"{row.median_ms:.1f}, {row.slow_ms:.1f}"
        lines.append([found.name, *figures, f"{found.index_seconds:.1f}", *size, warm])
    return table([*header, "warm query ms: median, p95"], lines)


def _defaults(rows: Sequence[Row]) -> tuple[Row, Row]:
    by_name = {row.measured.name: row for row in rows}
    return by_name[OURS], by_name[THEIRS]


def compared(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The difference of NDCG on the questions that judge, with its interval."""
    change = (ours - theirs)[1::2]
    low, high = interval(change)
    return f"NDCG@{DEPTH} {change.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def before(row: Row, questions: Sequence[Question]) -> str:
    """Our default against the version before, where that was asked of the same Python."""
    found = read_json(BEFORE)
    if found["python"] != platform.python_version() or row.measured.name != OURS:
        return f"The version before was asked of Python {found['python']}: not compared."
    old = np.array([found["ndcg"].get(question.text, np.nan) for question in questions])
    if not np.isfinite(old).all():
        return "The version before was asked other questions: not compared."
    name = f"{OURS} - the version before ({found['version']}, {old[1::2].mean():.3f})"
    return f"{name}: {compared(row.ndcg, old)}"


def costs(repository: Path, home: Path, question: str) -> str:
    """What fresh processes take: a query, a query after which nothing is looked up in the folder,
    and `index` after one file has changed and then changed back."""
    query = ["query", question, "--index", str(home), "--compact"]
    rows = [("cold query", systems.cold(query))]
    rows.append(("the same with --no-refresh", systems.cold([*query, "--no-refresh"])))
    file = min(repository.glob("*.py"))
    text = file.read_bytes()
    again = ["index", str(repository), "--index", str(home)]
    try:
        file.write_bytes(text + b"\ndef added_by_a_benchmark(): pass\n")
        rows.append(("index, one file changed", systems.cold(again, repeats=1)))
    finally:
        file.write_bytes(text)
    rows.append(("index, one file back", systems.cold(again, repeats=1)))
    cells = [[what, f"{seconds:.2f}", f"{size:.0f}"] for what, (seconds, size) in rows]
    return table(["in a fresh process", "seconds", "MB"], cells)


def difference(rows: Sequence[Row]) -> str:
    """Our default against semble's, question by question."""
    ours, theirs = _defaults(rows)
    seconds = ours.measured.index_seconds / theirs.measured.index_seconds
    size = ours.measured.index_bytes / theirs.measured.index_bytes
    return (
        f"{OURS} - {THEIRS}: {compared(ours.ndcg, theirs.ndcg)}, index "
        f"{seconds:.2g}x the seconds, {size:.2g}x the bytes, warm query "
        f"{ours.median_ms / theirs.median_ms:.2g}x the time"
    )


def card(rows: Sequence[Row], questions: Sequence[Question]) -> str:
    """The questions of the method card with the first hit of our default and of semble's."""
    lines = ["| question | ours: first hit | semble: first hit |", "|---|---|---|"]
    for number, question in enumerate(questions):
        if question.card:
            cells = (
                f"{'right: ' * bool(row.first[number])}`{row.measured.titles[number]}`"
                for row in _defaults(rows)
            )
            lines.append(f"| {question.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    program = "python -m benchmarks.search"
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--out", type=Path, default=systems.ROOT / "outputs" / "search")
    add("--model", default=DEFAULT, help="by default %(default)s")
    only = "only these modules and packages"
    add("--only", nargs="+", default=[], metavar="NAME", help=only)
    add("--repeats", type=int, default=5, help="timed queries of each question")
    options = parser.parse_args(arguments)
    try:
        print(compare(options))
    except (SpeedError, SearchError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    return 0


def compare(options: argparse.Namespace) -> str:
    """Measure everything, write it, and return the report."""
    out = options.out.resolve()
    repository = copy_library(out, options.only)
    questions, absent = load_questions(repository)
    task = systems.Task(repository, [q.text for q in questions], DEPTH, options.repeats)
    python = peer_environment.ensure(systems.ROOT / ".venv-peer", systems.PEER)
    static, log = out / "static-model", out / "semble.log"
    theirs, answer = systems.run_semble(task, python, options.model, static, log)
    others = [systems.run_ripgrep(task)] if shutil.which("rg") else []
    homes = {text: out / f"tenfold-{text}" for text in systems.OUR_VARIANTS}
    ours = [
        one
        for text, home in homes.items()
        for one in systems.run_ours(task, home, options.model, text)
    ]
    rows = [evaluate(system, questions) for system in (*theirs, *others, *ours)]
    # Labels that the chosen modules cannot have are no news.
    named = f"; not in this Python: {', '.join(absent)}" if absent and not options.only else ""
    digest = hashlib.sha256(QUESTIONS.read_bytes()).hexdigest()[:16]
    labels = sum(len(question.labels) for question in questions)
    files = max(row.measured.files for row in rows)
    head = (
        f"{len(questions)} plain questions with {labels} labelled functions (questions.json "
        f"{digest}{named}) on the standard library of Python {platform.python_version()}, "
        f"{files:,} files; the first {DEPTH} hits of each. {machine()}, {torch.get_num_threads()} "
        f"threads, {options.repeats} warm queries of each question. Index seconds: from the files "
        "to an index on disk, model loaded before.\n"
        f"semble {answer['version']} with a static model that model2vec {answer['model2vec']} "
        f"distils with its defaults from {options.model.rpartition(':')[2].rpartition('/')[2]}, as "
        "its own model cannot be downloaded here. Ours: the same weights as a transformer."
    )
    parts = [system_table(rows), difference(rows), before(rows[-1], questions)]
    parts.append(costs(repository, homes["both"], questions[0].text))
    text = "\n\n".join([head, *parts, card(rows, questions)])
    (out / "search.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())
