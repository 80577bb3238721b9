"""What bfloat16 costs both stages: `python -m benchmarks.search.precision --model CHECKPOINT`.

One model of ours in both precisions, on queries of the Python corpus's test packages: mean
reciprocal rank of the first stage and of the cascade at K = 10, the differences query by query, and
what the second stage adds. Writes DIR/precision.md, which is what is printed.

Shapes: Q queries, N candidates.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.claims import compose_experiment
from benchmarks.search.semble import interval
from benchmarks.search.systems import ROOT
from benchmarks.speed.__main__ import machine
from methods.cascode.data import CodeSearchData
from methods.cascode.inference import load_search_model
from methods.cascode.ranking import cascade, ranks, top_k
from methods.cascode.search.models import PRECISIONS, Model
from shared.checkpoints.reading import CheckpointError
from shared.nn.building import build, call

K = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Attributes: (Q,) reciprocal ranks in percent by the first stage and by both; seconds."""

    fast: Floats
    both: Floats
    seconds: float


def ranked(model: Model, queries: Sequence[str], codes: Sequence[str], answers: Tensor) -> Ranked:
    """Both stages on Q queries and N codes; `answers` (Q,) are the places of the right ones."""
    start = time.perf_counter()
    scores = torch.from_numpy(model.encode_queries(queries) @ model.encode_codes(codes).T)
    candidates = top_k(scores, min(K, len(codes)))
    pairs = [
        (query, codes[place])
        for query, row in zip(queries, candidates.tolist(), strict=True)
        for place in row
    ]
    judged = torch.from_numpy(model.score_pairs(pairs)).view(candidates.shape)
    names = answers.tolist(), range(len(codes))
    fast = ranks(scores, *names)
    both = cascade(scores, candidates, judged).ranks(*names)
    seconds = time.perf_counter() - start
    return Ranked(100 / fast.double().numpy(), 100 / both.double().numpy(), seconds)


def report(found: Mapping[str, Ranked], facts: str) -> str:
    """What `main` prints; `found` by precision, float32 first."""
    lines = [
        facts,
        "",
        f"| precision | MRR of the first stage | of the cascade at {K} | s |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {row.fast.mean():.2f} | {row.both.mean():.2f} | {row.seconds:.0f} |"
        for name, row in found.items()
    ]
    exact, *others = found.values()
    for row in others:
        changes = {"first stage": row.fast - exact.fast, "cascade": row.both - exact.both}
        lines += ["", "bfloat16 - float32: " + ", ".join(map(_change, changes, changes.values()))]
    gain = "cascade - first stage, float32"
    return "\n".join([*lines, "", _change(gain, exact.both - exact.fast)])


def _change(name: str, points: Floats) -> str:
    low, high = interval(points)
    return f"{name} {points.mean():+.2f} points ({low:+.2f} to {high:+.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="checkpoint of Slow or Shared")
    parser.add_argument("--queries", type=int, default=1_200)
    parser.add_argument("--codes", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "search")
    options = parser.parse_args(arguments)
    try:
        models: dict[str, Any] = {
            name: load_search_model(options.model, precision=name)  # type: ignore[arg-type]
            for name in PRECISIONS
            if name != "auto"
        }
        if not all(model.can_rerank for model in models.values()):
            raise CheckpointError(f"{options.model} has no second stage")
    except (CheckpointError, FileNotFoundError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    queries, codes, answers = _texts(options.queries, options.codes)
    facts = (
        f"{len(queries):,} queries of the test packages among {len(codes):,} codes, "
        f"{options.model}; {machine()}, {torch.get_num_threads()} threads"
    )
    text = report(
        {name: ranked(model, queries, codes, answers) for name, model in models.items()}, facts
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "precision.md").write_text(text + "\n")
    print(text)
    return 0


def _texts(queries: int, codes: int) -> tuple[Sequence[str], Sequence[str], Tensor]:
    """Of the miniature's corpus, which is built if it is missing."""
    overrides = (
        f"data.max_queries={{val: 50, test: {queries}}}",
        f"data.max_candidates={{val: 300, test: {codes}}}",
    )
    config = compose_experiment("reproduce/cascode/fast", overrides)
    call(config.source)
    data = build(config.data, CodeSearchData)
    data.setup("test")
    asked, found = data.texts("test")[0]
    return asked, found, torch.tensor(data.split("test")[0].answers)


if __name__ == "__main__":
    sys.exit(main())
