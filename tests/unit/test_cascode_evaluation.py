"""Both stages on four queries, and what is written of the second one's gain."""

import json
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.cascode.evaluation import Ranked, average, rank_codes, re_rank
from methods.cascode.gain import write_gain
from methods.cascode.search.models import decide

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
    language="python",
    queries=[[n] for n in range(4)],
    codes=[[n] for n in range(6)],
    query_urls=list("abcd"),
    code_urls=list("abcdef"),
    answers=[0, 1, 2, 3],
    allow_missing=False,
)


def knowing(pairs: Sequence[Pair]) -> Tensor:
    """Positive for a query and its code alone."""
    return torch.tensor([1.0 if query == code else -1.0 for query, code in pairs])


def test_the_second_stage_moves_what_it_sees():
    fast = rank_codes(QUERIES, CODES, SPLIT, testing=False)
    both = re_rank(QUERIES, CODES, SPLIT, (3, 1), knowing)
    assert fast.reciprocal.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert fast.gain is None
    assert both.reciprocal.tolist() == pytest.approx([1, 1, 1, 1 / 4])
    assert both.gain is not None
    assert both.gain.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 0])
    assert both.metrics["mrr"] == both.metrics["mrr_at_3"] == pytest.approx(100 * 3.25 / 4)
    assert both.metrics["mrr_at_1"] == both.metrics["fast_mrr"] == fast.metrics["mrr"]
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
