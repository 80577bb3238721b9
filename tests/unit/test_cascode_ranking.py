"""Ranks, MRR, the order of the cascade, protocols against plain loops; both stages, their gain."""

import json
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.cascode import ranking
from methods.cascode.evaluation import Ranked, average, rank_codes, re_rank
from methods.cascode.gain import write_gain
from methods.cascode.ranking import (
    Cascade,
    InnerProducts,
    diagonal_ranks,
    distractor_batches,
    distractor_ranks,
    mrr,
    ranks,
    recall,
    reciprocal_ranks,
    top_k,
)
from methods.cascode.search.models import decide

TIES = ("pessimistic", "optimistic", "index")
fast = settings(max_examples=50, deadline=None)


@st.composite
def searches(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Fast and slow scores with many ties; duplicated and missing ids."""
    queries, candidates = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0])

    def matrix() -> Tensor:
        row = st.lists(values, min_size=candidates, max_size=candidates)
        return torch.tensor(draw(st.lists(row, min_size=queries, max_size=queries)))

    ids = st.integers(0, 5)
    query_ids = draw(st.lists(ids, min_size=queries, max_size=queries))
    code_ids = draw(st.lists(ids, min_size=candidates, max_size=candidates))
    return matrix(), matrix(), query_ids, code_ids


def walked(order: list[int], query: int, code_ids: list[int]) -> int:
    """Position of the first candidate of the query's id, 0 without any."""
    return next((i for i, code in enumerate(order, 1) if code_ids[code] == query), 0)


def orders(keys: Tensor, query: int, code_ids: list[int], ties: str) -> list[int]:
    """Candidates sorted by descending rows of `keys`, ties broken as the rule says."""
    last = {
        "pessimistic": lambda i: code_ids[i] == query,
        "optimistic": lambda i: code_ids[i] != query,
        "index": lambda i: i,
    }[ties]
    return sorted(range(len(code_ids)), key=lambda i: (*(-k for k in keys[i].tolist()), last(i)))


@fast
@given(searches(), st.sampled_from(TIES))
def test_ranks_are_the_positions_of_a_walk_down_the_sorted_list(search, ties):
    scores, _, query_ids, code_ids = search
    found = ranks(scores, query_ids, code_ids, ties=ties, allow_missing=True)
    expected = [
        walked(orders(row[:, None], query, code_ids, ties), query, code_ids)
        for row, query in zip(scores, query_ids, strict=True)
    ]
    assert found.tolist() == expected


@fast
@given(searches(), st.sampled_from(TIES), st.data())
def test_the_cascade_ranks_inside_by_slow_and_outside_by_fast_scores(search, ties, data):
    first, slow, query_ids, code_ids = search
    k = data.draw(st.integers(0, len(code_ids)))
    chosen = top_k(first, k)
    shuffled = chosen.flip(1)  # the order in which candidates are given is of no account
    order = Cascade(first, shuffled, slow.gather(1, shuffled))
    inside = torch.zeros_like(first, dtype=torch.bool).scatter(1, chosen, True)
    keys = torch.stack([inside.float(), torch.where(inside, slow, first)], dim=2)
    sorted_ = [
        orders(row, query, code_ids, ties) for row, query in zip(keys, query_ids, strict=True)
    ]
    expected = [walked(*pair, code_ids) for pair in zip(sorted_, query_ids, strict=True)]
    assert order.ranks(query_ids, code_ids, True, ties=ties).tolist() == expected
    if ties == "index":
        assert order.ranking().tolist() == sorted_


@fast
@given(searches(), st.data())
def test_top_k_orders_by_score_then_by_index(search, data):
    scores, *_ = search
    k = data.draw(st.integers(0, scores.shape[1]))
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]
    assert top_k(scores, k).tolist() == expected


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_results_do_not_depend_on_how_many_scores_are_looked_at_in_one_go(monkeypatch, block):
    generator = torch.Generator().manual_seed(0)
    queries, codes = (torch.randn(n, 4, generator=generator).round() for n in (9, 13))
    query_ids, code_ids = list("abcdefghi"), list("aabcdefghijkl")
    scores, products = queries @ codes.T, InnerProducts(queries, codes)
    chosen = top_k(scores, 5)
    slow = torch.randn(9, 5, generator=generator)
    whole = Cascade(scores, chosen, slow)
    expected = ranks(scores, query_ids, code_ids), whole.ranks(query_ids, code_ids)
    ranked = whole.ranking()
    monkeypatch.setattr(ranking, "BLOCK", block)
    parts = Cascade(products, top_k(products, 5), slow)
    assert parts.candidates.equal(whole.candidates)
    assert ranks(products, query_ids, code_ids).equal(expected[0])
    assert parts.ranks(query_ids, code_ids).equal(expected[1])
    assert parts.ranking().equal(ranked)


def test_mrr_and_recall_by_hand():
    found = torch.tensor([1, 2, 0, 4, 2000])
    assert mrr(found) == pytest.approx((1 + 1 / 2 + 1 / 4) / 5)
    assert mrr(found, cutoff=2000) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 2000) / 5)
    assert reciprocal_ranks(found).tolist() == [1, 0.5, 0, 0.25, 0]
    assert [recall(found, k) for k in (1, 2, 10)] == [0.2, 0.4, 0.6]


def test_a_query_without_code_is_named_unless_allowed():
    scores = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"1 of 2 queries have no code among .* first: c"):
        ranks(scores, ["a", "c"], ["a", "b"])
    order = Cascade(scores, torch.tensor([[0], [0]]), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="first: c"):
        order.ranks(["a", "c"], ["a", "b"])
    assert ranks(scores, ["a", "c"], ["a", "b"], allow_missing=True).tolist() == [2, 0]
    assert ranks(torch.zeros(1, 0), ["a"], [], allow_missing=True).tolist() == [0]


def test_what_cannot_be_ranked_is_refused():
    scores = torch.tensor([[0.0, float("nan")]])
    for judge in (
        lambda: ranks(scores, [0], [0, 1]),
        lambda: top_k(scores, 1),
        lambda: diagonal_ranks(scores.expand(2, 2)),
    ):
        with pytest.raises(ValueError, match="NaN"):
            judge()
    with pytest.raises(ValueError, match=r"scores \(1, 2\) of 2 queries and 2 candidates"):
        ranks(torch.zeros(1, 2), [0, 1], [0, 1])
    for k in (-1, 3):
        with pytest.raises(ValueError, match=f"k={k} codes cannot be taken from 2"):
            top_k(torch.zeros(1, 2), k)
    for judge in (mrr, lambda found: recall(found, 1)):
        with pytest.raises(ValueError, match="no query"):
            judge(torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("candidates", "slow", "words"),
    [
        ([[0, 1]], [[0.0]], "do not fit"),
        ([[0], [1]], [[0.0], [0.0]], "do not fit 1 queries"),
        ([[1, 1]], [[0.0, 1.0]], "occurs twice"),
        ([[0, 3]], [[0.0, 1.0]], "none of the 3 codes"),
        ([[-1, 0]], [[0.0, 1.0]], "none of the 3 codes"),
        ([[0]], [[float("nan")]], "slow score is NaN"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(candidates, slow, words):
    with pytest.raises(ValueError, match=words):
        Cascade(torch.zeros(1, 3), torch.tensor(candidates), torch.tensor(slow))


def test_distractor_batches_are_the_official_ones():
    # numpy's global generator: seed 0, then `shuffle` of ten numbers.
    first, second = distractor_batches(10, 4).tolist()
    assert (first, second) == ([2, 8, 4, 9], [1, 6, 7, 3])
    assert distractor_batches(2743).shape == (2, 1000)
    assert distractor_batches(2743).unique().numel() == 2000
    with pytest.raises(ValueError, match="999 pairs make no batch of 1000"):
        distractor_batches(999)


def test_distractor_ranks_compare_with_the_codes_of_the_own_batch():
    generator = torch.Generator().manual_seed(2)
    queries, codes = (torch.randn(11, 3, generator=generator).round() for _ in range(2))
    found = distractor_ranks(queries, codes, size=5)
    assert found.shape == (2, 5)
    for batch, row in zip(distractor_batches(11, 5).tolist(), found.tolist(), strict=True):
        for query, rank in zip(batch, row, strict=True):
            own = queries[query] @ codes[query]
            assert rank == sum(bool(queries[query] @ codes[code] >= own) for code in batch)


@pytest.mark.parametrize("ties", TIES)
def test_half_precision_scores_rank_as_their_values_do(ties):
    generator = torch.Generator().manual_seed(3)
    k, scores = 2, torch.randn(4, 5, generator=generator).bfloat16()
    chosen = top_k(scores, k)
    slow = torch.randn(4, k, generator=generator).bfloat16()
    ids = range(4), range(5)
    found = Cascade(scores, chosen, slow).ranks(*ids, ties=ties)
    assert chosen.equal(top_k(scores.float(), k))
    assert found.equal(Cascade(scores.float(), chosen, slow.float()).ranks(*ids, ties=ties))


# --- both stages ---

Pair = tuple[Sequence[int], Sequence[int]]
CODES = torch.eye(6)
QUERIES = torch.tensor(
    [
        [1.0, 0.5, 0, 0, 0, 0],  # own code first
        [0.9, 0.8, 0, 0, 0, 0],  # second
        [0.9, 0.8, 0.7, 0, 0, 0],  # third
        [0.9, 0.8, 0.7, 0.6, 0, 0],  # fourth: beyond the best three
    ]
)
SPLIT = SimpleNamespace(
    language="python", queries=[[n] for n in range(4)], codes=[[n] for n in range(6)],
    query_urls=list("abcd"), code_urls=list("abcdef"), answers=[0, 1, 2, 3], allow_missing=False,
)  # fmt: skip


def knowing(pairs: Sequence[Pair]) -> Tensor:
    """Positive for a query and its code alone."""
    return torch.tensor([1.0 if query == code else -1.0 for query, code in pairs])


def test_the_second_stage_moves_what_it_sees():
    first = rank_codes(QUERIES, CODES, SPLIT, testing=False)
    both = re_rank(QUERIES, CODES, SPLIT, (3, 1), knowing)
    assert first.reciprocal.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert first.gain is None
    assert both.reciprocal.tolist() == pytest.approx([1, 1, 1, 1 / 4])
    assert both.gain is not None
    assert both.gain.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 0])
    assert both.metrics["mrr"] == both.metrics["mrr_at_3"] == pytest.approx(100 * 3.25 / 4)
    assert both.metrics["mrr_at_1"] == both.metrics["fast_mrr"] == first.metrics["mrr"]
    assert both.metrics["recall_1"] == 75
    assert both.metrics["pair_accuracy"] == 100


def test_languages_count_alike_and_one_by_one():
    found = {
        "go": Ranked({"mrr": 10.0, "distractor_mrr": 5.0}, torch.ones(3)),
        "php": Ranked({"mrr": 20.0}, torch.ones(1)),
    }
    assert average(found) == {"mrr": 15, "mrr_go": 10, "mrr_php": 20}
    assert average({"go": found["go"]}) == {"mrr": 10, "distractor_mrr": 5}


@pytest.mark.parametrize(
    ("changes", "reranks"),
    [
        ([0.5, 0.4, 0.0, 0.5] * 25, True),
        ([-0.2, 0.2, 0.1, -0.1] * 25, False),
        ([-0.2] * 20, False),
        ([0.1] * 20, True),  # an interval without width
    ],
)
def test_the_tool_reads_what_was_measured(changes, reranks, tmp_path):
    write_gain(tmp_path, np.array([0.3]), "")
    assert not list(tmp_path.iterdir()), "one query has no spread"
    write_gain(tmp_path, np.array(changes), "4 test queries")
    written = json.loads((tmp_path / "rerank_gain.json").read_text())
    assert written["gain"] == pytest.approx(100 * sum(changes) / len(changes), abs=1e-4)
    low, high = written["interval"]
    assert low <= written["gain"] <= high
    model = SimpleNamespace(name="judge", can_rerank=True)
    decision = decide("measured", model, str(tmp_path / "last.ckpt"))  # type: ignore[arg-type]
    assert decision.rerank is reranks
    assert "4 test queries" in decision.reason
