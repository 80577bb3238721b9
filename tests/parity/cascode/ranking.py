"""Adapters of ranks, protocols and the order of the cascade."""

from typing import Any

import torch
from torch import Tensor

from methods.cascode.ranking import Cascade, diagonal_ranks, mrr, ranks, recall, top_k


def mrr_protocol(
    config: dict[str, Any], inputs: dict[str, Tensor], weights: dict[str, Tensor]
) -> dict[str, Any]:
    def of(scores: str, ties: Any = "pessimistic") -> Tensor:
        ids = inputs["query_ids"], inputs["code_ids"]
        return ranks(inputs[scores], *ids, ties=ties, allow_missing=True)

    found = of("scores")
    outputs: dict[str, Any] = {
        "scores.rank": found,
        "scores.mrr": mrr(found, config["cutoff"]),
        "scores.mrr_small_cutoff": mrr(found, config["small_cutoff"]),
        "batched.rank": diagonal_ranks(inputs["batched_scores"]),
    }
    outputs["batched.mrr"] = mrr(outputs["batched.rank"])
    for name, scores, ties in (
        ("tied", "tied_scores", "optimistic"),
        ("tied", "tied_scores", "pessimistic"),
        ("constant", "constant_scores", "pessimistic"),
    ):
        found = of(scores, ties)
        outputs |= {f"{name}.rank_{ties}": found, f"{name}.mrr_{ties}": mrr(found)}
    return outputs


def cascade_ranking(
    config: dict[str, Any], inputs: dict[str, Tensor], weights: dict[str, Tensor]
) -> dict[str, Any]:
    fast, slow, truth = inputs["fast_scores"], inputs["slow_scores"], inputs["gt"]
    ids = truth, torch.arange(config["candidates"])
    positions = ranks(fast, *ids, ties="index", allow_missing=True)
    outputs: dict[str, Any] = {
        "fast.ranking": top_k(fast, config["candidates"]),
        **_ranked("fast", positions, ranks(fast, *ids, allow_missing=True)),
    }
    for k in config["K"]:
        chosen = top_k(fast, k)
        order = Cascade(fast, chosen, slow.gather(1, chosen))
        outputs[f"k{k}.topk"] = chosen
        outputs[f"k{k}.ranking"] = order.ranking()
        outputs[f"k{k}.recall"] = recall(positions, k)
        outputs |= _ranked(
            f"k{k}",
            order.ranks(*ids, allow_missing=True, ties="index"),
            order.ranks(*ids, allow_missing=True),
        )
    return outputs


def _ranked(name: str, positions: Tensor, pessimistic: Tensor) -> dict[str, Any]:
    return {
        f"{name}.rank": positions,
        f"{name}.rank_pessimistic": pessimistic,
        f"{name}.mrr": mrr(positions),
        f"{name}.mrr_pessimistic": mrr(pessimistic),
    }
