"""The peer's side, in the peer's environment: `SentenceTransformer` and `CrossEncoder`.

Nothing of ours is imported but the serving loop. Each variant takes the batch size that is fastest
for it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.serving import Workload

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


class Search(Workload):
    """What both sides are asked: to encode codes, to answer queries, and what must be equal."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.folder, self.rows = Path(settings["data"]), settings["encoded"]
        texts = json.loads((self.folder / "texts.json").read_text())
        self.queries, self.codes = texts["queries"], texts["codes"]
        self.models: dict[str, Any] = {}

    def pairs(self, queries: Sequence[str], codes: Iterable[Sequence[int]]) -> list[Any]:
        """Each query with its codes, of which the places are given."""
        return [(q, self.codes[c]) for q, of in zip(queries, codes, strict=True) for c in of]

    def values(self) -> dict[str, list[float]]:
        """Mean reciprocal ranks in percent are of the first stage, and of both given a judge."""
        compared, judged = self.settings["compared"], self.settings["judged"]
        vectors = self.vectors(self.queries[:compared], self.codes[:compared])
        ranks = self.ranks(self.queries[:judged] if self.settings["judge"] else [])
        return {
            "vectors": [value for part in vectors for value in part.flatten().tolist()],
            "scores": self.scores(self.pairs(self.queries[:4], [range(compared)] * 4)),
            "mean reciprocal ranks": [100 * sum(1 / r for r in of) / len(of) for of in ranks],
        }

    def vectors(self, queries: list[str], codes: list[str]) -> list[Any]:
        raise NotImplementedError

    def scores(self, pairs: list[Any]) -> list[float]:
        raise NotImplementedError

    def ranks(self, judged: list[str]) -> list[list[int]]:
        """Ranks of each query's own code by the first stage; of those `judged` by both, if any."""
        raise NotImplementedError


class Peer(Search):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        os.environ["RAYON_NUM_THREADS"] = str(settings["threads"])  # of the tokenisers
        os.environ["HF_HUB_OFFLINE"] = "1"

    def parameters(self) -> Iterable[Tensor]:
        return [p for model in self.model("float32") for p in model.parameters()]

    def step(self, precision: str, what: str) -> Callable[[], float]:
        fast, slow = self.model(precision)
        if what == "encoding":
            codes = self.codes[: self.settings["encoded"]]
            return self.fastest(what, lambda size: self.encode(fast, codes, size))
        queries = self.queries[: self.settings["queries"][what]]
        index, depth = self.encode(fast, self.codes), int(what)
        return self.fastest(
            what, lambda size: self.answers(fast, slow, index, queries, depth, size)
        )

    def fastest(self, what: str, step: Callable[[int], Any]) -> Callable[[], float]:
        sizes, taken = self.settings["batch_sizes"], {}
        step(sizes[0])  # kernels are chosen and memory is allocated here
        for size in sizes:
            begin = time.perf_counter()
            step(size)
            taken[size] = time.perf_counter() - begin
        best = min(sizes, key=lambda size: taken[size])
        print(f"{what}: batches of {best}, seconds {taken}", file=sys.stderr)
        return lambda: float(len(step(best)) > 0)

    def model(self, precision: str) -> tuple[Any, Any]:
        if precision not in self.models:
            from sentence_transformers import CrossEncoder, SentenceTransformer

            form: dict[str, Any] = {"model_kwargs": {"dtype": PRECISIONS[precision]}}
            form["device"] = "cpu"
            fast = SentenceTransformer(str(self.folder / "fast"), **form)
            fast.max_seq_length = self.settings["lengths"]["code"]
            length = self.settings["lengths"]["pair"]
            slow = CrossEncoder(str(self.folder / "slow"), max_length=length, **form)
            self.models[precision] = fast, slow
        return self.models[precision]

    def encode(self, fast: Any, texts: list[str], size: int = 32) -> Tensor:
        return fast.encode(
            texts, batch_size=size, convert_to_tensor=True, normalize_embeddings=True
        )

    def answers(
        self, fast: Any, slow: Any, index: Tensor, queries: list[str], depth: int, size: int = 32
    ) -> list[list[int]]:
        """Of each query the places of its best codes, best first."""
        from sentence_transformers.util import semantic_search

        hits = semantic_search(self.encode(fast, queries, size), index, top_k=depth)
        found = [[hit["corpus_id"] for hit in of_query] for of_query in hits]
        judged = self.judge(slow, self.pairs(queries, found), size)
        by_query = judged.reshape(len(queries), depth).tolist()
        return [
            [code for _, code in sorted(zip(scores, codes, strict=True), key=lambda s: -s[0])]
            for scores, codes in zip(by_query, found, strict=True)
        ]

    def judge(self, slow: Any, pairs: list[Any], size: int = 32) -> Any:
        logits = slow.predict(pairs, batch_size=size)
        return logits[:, 1] - logits[:, 0]

    def vectors(self, queries: list[str], codes: list[str]) -> list[Any]:
        return [self.encode(self.model("float32")[0], texts) for texts in (queries, codes)]

    def scores(self, pairs: list[Any]) -> list[float]:
        return self.judge(self.model("float32")[1], pairs).tolist()

    def ranks(self, judged: list[str]) -> list[list[int]]:
        fast, slow = self.model("float32")
        queries, index = self.vectors(self.queries, self.codes)
        scores = queries @ index.T
        found = [(scores >= scores.diagonal()[:, None]).sum(dim=1).tolist()]
        if judged:
            orders = enumerate(self.answers(fast, slow, index, judged, 10))
            own = [order.index(n) + 1 if n in order else found[0][n] for n, order in orders]
            found.append(own)
        return found
