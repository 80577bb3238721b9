"""Our search tool beside `semble`: `python -m benchmarks.search.semble --out DIR`.

Both index the same files, the standard library of the running Python, and are asked the same plain
questions of questions.json, whose answers are graded functions. How hits become NDCG@10 is said in
questions.py. Systems run one after the other, never at the same time.

semble's own model, potion-code-16M-v2, has to be downloaded from a model hub. Here it gets a static
model that its authors' `model2vec` distils, with its defaults, from the weights that our side uses,
all-MiniLM-L6-v2. That model was not made for code, so semble with its own may do better;
`semble, words only` does not depend on it.

Writes what it prints to DIR/semble.md, too.
"""

import argparse
import hashlib
import platform
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
from shared.showing import table

THEIRS, OURS = list(systems.SEMBLE_VARIANTS)[-1], list(systems.OUR_VARIANTS)[-1]


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
    header = ["system", f"NDCG@{DEPTH} (95% interval)", "hit@1", "index s", "items", "index MB"]
    lines = []
    for row in rows:
        low, high = interval(row.ndcg)
        found = row.measured
        figures = f"{row.ndcg.mean():.3f} ({low:.3f} to {high:.3f})", f"{row.first.mean():.2f}"
        size = f"{found.items:,}", f"{found.index_bytes / 1e6:.1f}"
        warm = f"{row.median_ms:.1f}, {row.slow_ms:.1f}"
        lines.append([found.name, *figures, f"{found.index_seconds:.1f}", *size, warm])
    return table([*header, "warm query ms: median, p95"], lines)


def _defaults(rows: Sequence[Row]) -> tuple[Row, Row]:
    by_name = {row.measured.name: row for row in rows}
    return by_name[OURS], by_name[THEIRS]


def difference(rows: Sequence[Row]) -> str:
    """Our default against semble's, question by question."""
    ours, theirs = _defaults(rows)
    change = ours.ndcg - theirs.ndcg
    low, high = interval(change)
    seconds = ours.measured.index_seconds / theirs.measured.index_seconds
    size = ours.measured.index_bytes / theirs.measured.index_bytes
    return (
        f"{OURS} - {THEIRS}: NDCG@{DEPTH} {change.mean():+.3f} ({low:+.3f} to {high:+.3f}), index "
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
    program = "python -m benchmarks.search.semble"
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
    ours = systems.run_ours(task, out / "tenfold-index", options.model)
    rows = [evaluate(system, questions) for system in (*theirs, *ours)]
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
    text = "\n\n".join([head, system_table(rows), difference(rows), card(rows, questions)])
    (out / "semble.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())
