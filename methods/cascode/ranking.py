"""Ranks of the right codes, their mean reciprocal, and the order of the cascade.

Shapes: Q queries, N candidates, K of them re-ranked, d vector size. A code's identity is its url:
several candidates of one url are the same answer, the best one counts. Equal scores count against
the model (`pessimistic`), so that a constant score, as of a collapsed network, finds nothing; the
official code leaves their order to an unstable sort.
Source: docs/papers/cascode.md, sections 3.5 and 7; microsoft/CodeBERT@c0de43d UniXcoder's
`code-search/run.py:evaluate` and `CodeBERT/codesearch/{process_data,mrr}.py`.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[Hashable] | Tensor
Ties = Literal["pessimistic", "optimistic", "index"]
CUTOFF = 1000  # positions of a ranking that the official evaluation walks down
BLOCK = 2**23  # scores looked at in one go


@dataclass(frozen=True)
class InnerProducts:
    """Scores (Q, N) = queries (Q, d) @ codes (N, d).T, computed for the rows that are asked for:
    all of 14,918 queries and 43,827 codes would take 2.6 GB."""

    queries: Tensor
    codes: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.codes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.queries[rows] @ self.codes.T


Scores = Tensor | InnerProducts


def ranks(
    scores: Scores,
    query_ids: Ids,
    code_ids: Ids,
    *,
    ties: Ties = "pessimistic",
    allow_missing: bool = False,
) -> Tensor:
    """(Q,) int64 on the CPU: the rank of each query's code from 1, or 0 if it is no candidate.

    Args:
        scores: (Q, N), higher is better.
        query_ids, code_ids: the answer of a query is any candidate with the query's id.
        ties: codes of another id with the same score stand before the answer (`pessimistic`),
            behind it (`optimistic`), or where their index puts them (`index`: as `top_k` orders).
        allow_missing: a query without an answer among the candidates is no ValueError.
    """
    queries, codes = _numbered(query_ids, code_ids, scores.shape, allow_missing)
    positions = torch.zeros(len(queries), dtype=torch.int64)
    for rows, block in _blocks(scores, torch.arange(len(queries))):
        positions[rows] = _rank(block, codes == queries[rows, None], ties)
    return positions


def reciprocal_ranks(ranks: Tensor, cutoff: int = CUTOFF) -> Tensor:
    """1 / rank in float64, 0 for missing codes (rank 0) and below the first `cutoff` positions."""
    inside = (ranks > 0) & (ranks <= cutoff)
    return torch.where(inside, 1 / ranks.clamp(min=1).double(), 0.0)


def mrr(ranks: Tensor, cutoff: int = CUTOFF) -> float:
    """Mean reciprocal rank, from 0 to 1, over all queries; see `reciprocal_ranks`."""
    return float(reciprocal_ranks(_some(ranks), cutoff).mean())


def recall(ranks: Tensor, k: int) -> float:
    """Share of the queries whose code is among the first k; a missing one (rank 0) is not."""
    positions = _some(ranks)
    return float(((positions > 0) & (positions <= k)).double().mean())


def top_k(scores: Scores, k: int) -> Tensor:
    """(Q, k) int64 on the CPU: the candidates of highest score, the lower index first if equal."""
    queries, candidates = scores.shape
    if not 0 <= k <= candidates:
        raise ValueError(f"k={k} codes cannot be taken from {candidates}: choose 0 to {candidates}")
    best = torch.empty(queries, k, dtype=torch.int64)
    if k:
        for rows, block in _blocks(scores, torch.arange(queries)):
            best[rows] = _top(block, k).cpu()
    return best


class Cascade:
    """The order of both stages: the re-ranked codes by slow score, below them the rest by fast one.

    Slow scores replace fast ones inside the top K; the two are never compared or added. Hence the
    code's rank changes only if it is among the top K, and recall@K of the first stage bounds the
    result: MRR <= recall@K + (share outside) / (K + 1).

    Args:
        fast_scores: (Q, N). candidates: (Q, K), the `top_k` of these, in any order.
        slow_scores: (Q, K) of the candidates.
    """

    def __init__(self, fast_scores: Scores, candidates: Tensor, slow_scores: Tensor):
        candidates, slow_scores = candidates.cpu(), slow_scores.cpu()
        queries, size = fast_scores.shape
        if candidates.shape != slow_scores.shape or len(candidates) != queries:
            given = f"{tuple(candidates.shape)} candidates, {tuple(slow_scores.shape)} slow scores"
            raise ValueError(f"{given}: they do not fit {queries} queries")
        if slow_scores.isnan().any():
            raise ValueError("a slow score is NaN: the network has diverged")
        self.candidates, order = candidates.sort(dim=1)  # by index
        if (self.candidates.diff(dim=1) == 0).any():
            raise ValueError("a candidate of a query occurs twice")
        if candidates.numel() and not 0 <= candidates.min() <= candidates.max() < size:
            raise ValueError(f"a candidate is none of the {size} codes")
        self.fast_scores, self.slow_scores = fast_scores, slow_scores.gather(1, order)

    def ranking(self) -> Tensor:
        """(Q, N) int64 on the CPU: all candidates, best first, the lower index first if equal."""
        order = self.slow_scores.sort(dim=1, descending=True, stable=True).indices
        first = self.candidates.gather(1, order)
        queries, candidates = self.fast_scores.shape
        rest = torch.empty(queries, candidates - first.shape[1], dtype=torch.int64)
        for rows, block in _blocks(self.fast_scores, torch.arange(queries)):
            order = block.sort(dim=1, descending=True, stable=True).indices.cpu()
            inside = torch.zeros_like(order, dtype=torch.bool)
            inside.scatter_(1, self.candidates[rows], True)
            rest[rows] = order[~inside.gather(1, order)].view(len(rows), rest.shape[1])
        return torch.cat([first, rest], dim=1)

    def ranks(
        self, query_ids: Ids, code_ids: Ids, allow_missing: bool = False, ties: Ties = "pessimistic"
    ) -> Tensor:
        """As the function `ranks`; ties are those of slow scores inside the top K, of fast ones
        outside."""
        queries, codes = _numbered(query_ids, code_ids, self.fast_scores.shape, allow_missing)
        positions = _rank(self.slow_scores, codes[self.candidates] == queries[:, None], ties)
        # The top K score at least as high as all others: outside, the fast rank stays. (If equal
        # scores are cut by K, even the optimistic rank is below it.)
        outside = ((positions == 0) & (queries >= 0)).nonzero()[:, 0]
        depth = self.candidates.shape[1]
        for rows, block in _blocks(self.fast_scores, outside):
            rank = _rank(block, codes == queries[rows, None], ties)
            positions[rows] = rank.clamp(min=depth + 1)
        return positions


def distractor_batches(count: int, size: int = 1000, seed: int = 0) -> Tensor:
    """(B, size) int64: `count` test pairs, shuffled and cut; an incomplete batch is dropped. (This
    protocol is not comparable with the full-codebase one, only reported next to it.)"""
    if count < size:
        raise ValueError(f"{count} pairs make no batch of {size}: take more or a smaller size")
    # The official batches come from this old generator.
    order = np.random.RandomState(seed).permutation(count)
    return torch.from_numpy(order[: count - count % size].reshape(-1, size))


def diagonal_ranks(scores: Tensor) -> Tensor:
    """Ranks (..., S) int64 by scores (..., S, S) where query r's code is candidate r; equal ones
    stand before it, a NaN is a ValueError."""
    if scores.isnan().any():
        raise ValueError("a score is NaN: the network has diverged")
    own = scores.diagonal(dim1=-2, dim2=-1)
    return (scores >= own[..., None]).sum(dim=-1)


def distractor_ranks(queries: Tensor, codes: Tensor, size: int = 1000, seed: int = 0) -> Tensor:
    """(B, size) int64: the rank of each test pair's code, vectors (pairs, d), among those of its
    batch of `distractor_batches`."""
    batches = distractor_batches(len(queries), size, seed)
    return torch.stack([diagonal_ranks(queries[batch] @ codes[batch].T) for batch in batches])


def _numbered(
    query_ids: Ids, code_ids: Ids, shape: Sequence[int], allow_missing: bool
) -> tuple[Tensor, Tensor]:
    """Ids as integers (Q,) and (N,): equal where the ids are; -1 for a query without an answer."""
    query_ids, code_ids = (
        ids.tolist() if isinstance(ids, Tensor) else ids for ids in (query_ids, code_ids)
    )
    if (len(query_ids), len(code_ids)) != tuple(shape):
        given = f"{len(query_ids)} queries and {len(code_ids)} candidates"
        raise ValueError(f"scores {tuple(shape)} of {given}")
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault(id_, len(numbers)) for id_ in code_ids]
    queries = [numbers.get(id_, -1) for id_ in query_ids]
    missing = [id_ for id_, number in zip(query_ids, queries, strict=True) if number < 0]
    if missing and not allow_missing:
        lacking = f"{len(missing)} of {len(queries)} queries have no code among the candidates"
        raise ValueError(f"{lacking}, first: {missing[0]}; allow_missing counts them as not found")
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(codes, dtype=torch.int64)


def _blocks(scores: Scores, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the rows and their scores at a time; a NaN is a ValueError."""
    for part in rows.split(max(1, BLOCK // max(1, scores.shape[1]))):
        if not len(part):
            return
        block = scores[part]
        if block.shape[1] and block.amax(dim=1).isnan().any():
            raise ValueError("a score is NaN: the network has diverged")
        yield part, block


def _rank(scores: Tensor, own: Tensor, ties: Ties) -> Tensor:
    """(q,) int64 on the CPU: the best rank of `own` (q, n) by `scores` (q, n); 0 without any."""
    if not scores.shape[1]:
        return torch.zeros(len(scores), dtype=torch.int64)
    own = own.to(scores.device)
    best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    if ties == "optimistic":
        ahead = scores > best
    elif ties == "pessimistic":
        ahead = (scores >= best) & ~own
    else:
        first = (own & (scores == best)).int().argmax(dim=1, keepdim=True)
        earlier = torch.arange(scores.shape[1], device=scores.device) < first
        ahead = (scores > best) | ((scores == best) & earlier)
    count = ahead.sum(dim=1, dtype=torch.int32)  # five times as fast as in int64
    return torch.where(own.any(dim=1), 1 + count, 0).long().cpu()


def _top(scores: Tensor, k: int) -> Tensor:
    """(q, k) the best of (q, n) by descending score, then ascending index."""
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    chosen = best.indices[:, :k]
    if k < scores.shape[1]:
        # Of equal scores at the border topk takes any.
        cut = best.values[:, k - 1] == best.values[:, k]
        sorted_ = scores[cut].sort(dim=1, descending=True, stable=True).indices
        chosen[cut] = sorted_[:, :k]
    chosen = chosen.sort(dim=1).values
    order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True).indices
    return chosen.gather(1, order)


def _some(ranks: Tensor) -> Tensor:
    if not ranks.numel():
        raise ValueError("there is no query to average over")
    return ranks
