"""Our side: `SearchModel`, as the search tool uses it, and the order of `cascade`.

Variants: "float32" or "bf16", then "encoding", or the K of queries that are answered.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.serving import serve, timed
from methods.cascode.encoders import load_searcher, read
from methods.cascode.inference import Precision, SearchModel
from methods.cascode.model import PairHead
from methods.cascode.ranking import cascade, mrr, ranks, top_k
from methods.cascode.tokenizer import CodeTokenizer
from shared.training.allocator import keep_freed_memory

PRECISIONS: dict[str, Precision] = {"float32": "float32", "bf16": "bfloat16"}


class OurSearch:
    """Builds each variant when it is first asked for."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        keep_freed_memory()
        self.settings, self.folder = settings, Path(settings["data"])
        texts = json.loads((self.folder / "texts.json").read_text())
        self.queries, self.codes = texts["queries"], texts["codes"]
        self.models: dict[str, SearchModel] = {}
        self.steps: dict[str, Callable[[], object]] = {}

    def describe(self) -> dict[str, Any]:
        encoder, head = load_searcher(self.folder / "slow"), judging_head(self.folder / "slow")
        networks = (load_searcher(self.folder / "fast"), encoder, head)
        return {
            "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "images_per_step": self.settings["encoded"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, what = variant.split()
        asked = 1
        if what != "encoding":
            asked = self.settings["queries"][what]
        if variant not in self.steps:
            self.steps[variant] = self.step(precision, what)
        seconds, losses = timed(lambda: float(bool(self.steps[variant]())), steps)
        return [value / asked for value in seconds], losses

    def step(self, precision: str, what: str) -> Callable[[], object]:
        model = self.model(precision)
        if what == "encoding":
            codes = self.codes[: self.settings["encoded"]]
            return lambda: len(model.encode_codes(codes))
        queries = self.queries[: self.settings["queries"][what]]
        index = torch.from_numpy(model.encode_codes(self.codes))
        return lambda: len(self.answers(model, index, queries, int(what))[0])

    def model(self, precision: str) -> SearchModel:
        if precision not in self.models:
            fast, slow = self.folder / "fast", self.folder / "slow"
            self.models[precision] = SearchModel(
                "speed",
                load_searcher(fast),
                CodeTokenizer(fast),
                self.settings["lengths"],
                (load_searcher(slow), judging_head(slow)),
                PRECISIONS[precision],
            )
        return self.models[precision]

    def answers(
        self, model: SearchModel, index: Tensor, queries: list[str], depth: int
    ) -> tuple[Tensor, Tensor]:
        """(Q, N) places of the codes, best first, and the rank of each query's own code."""
        scores = torch.from_numpy(model.encode_queries(queries)) @ index.T
        candidates = top_k(scores, depth)
        pairs = [
            (query, self.codes[code])
            for query, row in zip(queries, candidates.tolist(), strict=True)
            for code in row
        ]
        judged = torch.from_numpy(model.score_pairs(pairs)).view(candidates.shape)
        order = cascade(scores, candidates, judged)
        return order.ranking(), order.ranks(range(len(queries)), range(len(index)))

    def values(self) -> dict[str, list[float]]:
        model, settings = self.model("float32"), self.settings
        compared = settings["compared"]
        pairs = [(q, c) for q in self.queries[:4] for c in self.codes[:compared]]
        vectors = (model.encode_queries(self.queries[:compared]),
                   model.encode_codes(self.codes[:compared]))  # fmt: skip
        return {
            "vectors": [float(value) for part in vectors for value in part.flatten()],
            "scores": model.score_pairs(pairs).tolist(),
            "mean reciprocal ranks": self.reciprocal_ranks(),
        }

    def reciprocal_ranks(self) -> list[float]:
        """In percent: of the first stage and, where a trained judge is given, of both."""
        model = self.model("float32")
        index = torch.from_numpy(model.encode_codes(self.codes))
        scores = torch.from_numpy(model.encode_queries(self.queries)) @ index.T
        found = [ranks(scores, range(len(scores)), range(len(index)))]
        if self.settings["judge"]:
            queries = self.queries[: self.settings["judged"]]
            found.append(self.answers(model, index, queries, 10)[1])
        return [100 * mrr(of_stage) for of_stage in found]


def judging_head(folder: Path) -> PairHead:
    """What the classifier of a BERT is: its pooler, and a layer on that."""
    state = read(folder)
    weight = state["classifier.weight"]
    head = PairHead(weight.shape[1], dropout=0.0)
    head.dense.load_state_dict({n: state[f"bert.pooler.dense.{n}"] for n in ("weight", "bias")})
    head.output.load_state_dict({"weight": weight, "bias": state["classifier.bias"]})
    return head


if __name__ == "__main__":
    serve(OurSearch)
