"""How well queries find their codes: by vectors, and after re-ranking the best.

Shapes: Q queries, N candidates, K of them re-ranked, d vector size.
Source: docs/papers/cascode.md, sections 3.5 and 7.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.cascode import ranking
from shared.distributed import gather_objects, rank, world_size
from shared.files import write_json
from shared.randomness import torch_generator

Batch = Mapping[str, Any]
Pair = tuple[Sequence[int], Sequence[int]]
Score = Callable[[Sequence[Pair]], Tensor]
PER_QUERY = "per_query.json"
CUTOFFS = (1, 5, 10, 100)
DISTRACTORS = 1000  # codes of a batch of the distractor protocol, the right one included


class Ranked(NamedTuple):
    """Metrics in percent, and the reciprocal rank of each query (Q,) that `mrr` is the mean of."""

    metrics: dict[str, float]
    reciprocal: Tensor
    fast_reciprocal: Tensor | None = None  # that of the first stage, where a second one followed

    @property
    def gain(self) -> Tensor | None:
        """(Q,) what the second stage adds to each query's reciprocal rank; None without one."""
        return None if self.fast_reciprocal is None else self.reciprocal - self.fast_reciprocal


class Vectors:
    """Vectors of evaluation batches, of queries and codes, language by language."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, batch: Batch, vectors: Tensor) -> None:
        """Keep the vectors (B, d) of a batch of one `kind` and `language`."""
        key = batch["language"], batch["kind"]
        self._pieces[key].append((batch["indices"].cpu(), vectors.float().cpu()))

    def take(self, language: str, kind: str, size: int) -> Tensor:
        """(size, d) the vectors of all ranks in the order of the data set, which are forgotten; a
        ValueError if some are missing, as when batches are limited."""
        everyone = gather_objects(self._pieces.pop((language, kind), []))
        rows = [row for piece in everyone for row in piece]
        indices = torch.cat([torch.empty(0, dtype=torch.long), *(row[0] for row in rows)])
        if len(indices) != size:
            given = f"{len(indices)} of {size} vectors ({language}, {kind})"
            raise ValueError(f"{given}: an evaluation needs all batches, lift the limit on them")
        vectors = torch.cat([row[1] for row in rows])
        return torch.empty_like(vectors).index_copy_(0, indices, vectors)


def rank_codes(queries: Tensor, codes: Tensor, split: Any, testing: bool) -> Ranked:
    """Rank by the first stage's (Q, d) and (N, d): as `rank_by`, and in the test `distractor_mrr`;
    `split` is a `methods.cascode.data.Split`."""
    ranked = rank_by(ranking.InnerProducts(queries, codes), split)
    if testing and len(queries) >= DISTRACTORS and min(split.answers) >= 0:
        own = torch.tensor(split.answers)
        positions = ranking.distractor_ranks(queries, codes[own])
        ranked.metrics["distractor_mrr"] = 100 * ranking.mrr(positions)
    return ranked


def rank_by(scores: ranking.Scores, split: Any) -> Ranked:
    """Rank by given scores (Q, N): `mrr` and `recall_<k>`."""
    names = split.query_urls, split.code_urls
    positions = ranking.ranks(scores, *names, allow_missing=split.allow_missing)
    return Ranked(_metrics(positions), ranking.reciprocal_ranks(positions))


def average(rankings: Mapping[str, Ranked]) -> dict[str, float]:
    """Unweighted means over the languages of what all of them have; several also one by one."""
    every = [ranked.metrics for ranked in rankings.values()]
    shared = set.intersection(*map(set, every))
    means = {name: sum(m[name] for m in every) / len(every) for name in sorted(shared)}
    if len(rankings) > 1:
        means |= {f"mrr_{language}": r.metrics["mrr"] for language, r in rankings.items()}
    return means


def write_per_query(folder: str | PathLike[str], rankings: Mapping[str, Ranked]) -> None:
    """Write the reciprocal rank of each test query in percent, for comparisons query by query."""
    reciprocal = torch.cat([ranked.reciprocal for ranked in rankings.values()])
    content = {"test/mrr": (100 * reciprocal).tolist()}
    write_json(Path(folder) / PER_QUERY, content, indent=None)


def re_rank(
    queries: Tensor, codes: Tensor, split: Any, depths: Sequence[int], score: Score
) -> Ranked:
    """Rank by both stages: `mrr` and `recall_<k>` at the first of `depths`, `mrr_at_<K>` at each.

    Also `fast_mrr`, that of the first stage, which is what re-ranking has to beat, and
    `pair_accuracy`: percent of right decisions about true pairs and as many wrong ones.
    """
    scores = ranking.InnerProducts(queries, codes)
    fast = rank_by(scores, split)
    candidates = ranking.top_k(scores, min(max(depths), len(codes)))
    pairs = [
        (split.queries[query], split.codes[code])
        for query, row in enumerate(candidates.tolist())
        for code in row
    ]
    slow = shared_scores(pairs, score).view(candidates.shape)
    at: dict[int, Tensor] = {}
    for depth in depths:
        kept = min(depth, len(codes))
        order = ranking.Cascade(scores, candidates[:, :kept], slow[:, :kept])
        at[depth] = order.ranks(split.query_urls, split.code_urls, split.allow_missing)
    best = at[depths[0]]
    metrics = _metrics(best) | {f"mrr_at_{k}": 100 * ranking.mrr(each) for k, each in at.items()}
    metrics |= {"fast_mrr": fast.metrics["mrr"], "pair_accuracy": _pair_accuracy(split, score)}
    return Ranked(metrics, ranking.reciprocal_ranks(best), fast.reciprocal)


def shared_scores(pairs: Sequence[Pair], score: Score) -> Tensor:
    """(n,) the scores of all pairs on every rank; each rank judges every world-th of them."""
    scores = torch.empty(len(pairs))
    for first, own in enumerate(gather_objects(score(pairs[rank() :: world_size()]))):
        scores[first :: world_size()] = own
    return scores


def _pair_accuracy(split: Any, score: Score) -> float:
    """Percent of right decisions about each query with its code and with another, fixed one."""
    generator = torch_generator(0, 0, "pair accuracy")
    answers = [answer for answer in split.answers if answer >= 0]
    asked = [query for query, answer in enumerate(split.answers) if answer >= 0]
    steps = torch.randint(1, len(split.codes), (len(asked),), generator=generator)
    others = ((torch.tensor(answers) + steps) % len(split.codes)).tolist()
    pairs = [
        (split.queries[query], split.codes[code])
        for codes in (answers, others)
        for query, code in zip(asked, codes, strict=True)
    ]
    matched = shared_scores(pairs, score) > 0
    right = torch.cat([matched[: len(asked)], ~matched[len(asked) :]])
    return 100 * float(right.double().mean())


def _metrics(positions: Tensor) -> dict[str, float]:
    recalls = {f"recall_{k}": 100 * ranking.recall(positions, k) for k in CUTOFFS}
    return {"mrr": 100 * ranking.mrr(positions), **recalls}
