"""The peer's side, in the peer's environment: `SentenceTransformer` and `CrossEncoder`.

Nothing of ours is imported but the serving loop. Each variant takes the batch size that is fastest
for it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.serving import Workload

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


class Peer(Workload):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        os.environ["RAYON_NUM_THREADS"] = str(settings["threads"])  # of the tokenisers
        os.environ["HF_HUB_OFFLINE"] = "1"
        self.folder, self.rows = Path(settings["data"]), settings["encoded"]
        texts = json.loads((self.folder / "texts.json").read_text())
        self.queries, self.codes = texts["queries"], texts["codes"]
        self.models: dict[str, tuple[Any, Any]] = {}

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

            form: dict[str, Any] = {
                "device": "cpu",
                "model_kwargs": {"dtype": PRECISIONS[precision]},
            }
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
        pairs = [
            (query, self.codes[code])
            for query, codes in zip(queries, found, strict=True)
            for code in codes
        ]
        logits = slow.predict(pairs, batch_size=size)
        judged = (logits[:, 1] - logits[:, 0]).reshape(len(queries), depth).tolist()
        return [
            [code for _, code in sorted(zip(scores, codes, strict=True), key=lambda s: -s[0])]
            for scores, codes in zip(judged, found, strict=True)
        ]

    def values(self) -> dict[str, list[float]]:
        fast, slow = self.model("float32")
        compared = self.settings["compared"]
        pairs = [(q, c) for q in self.queries[:4] for c in self.codes[:compared]]
        texts = self.queries[:compared], self.codes[:compared]
        vectors = [value for part in texts for value in self.encode(fast, part).flatten().tolist()]
        logits = slow.predict(pairs)
        return {
            "vectors": vectors,
            "scores": (logits[:, 1] - logits[:, 0]).tolist(),
            "mean reciprocal ranks": self.reciprocal_ranks(),
        }

    def reciprocal_ranks(self) -> list[float]:
        """In percent: of the first stage and, where a trained judge is given, of both."""
        fast, slow = self.model("float32")
        index = self.encode(fast, self.codes)
        scores = self.encode(fast, self.queries) @ index.T
        ranks = (scores >= scores.diagonal()[:, None]).sum(dim=1).tolist()
        found = [ranks]
        if self.settings["judge"]:
            queries = self.queries[: self.settings["judged"]]
            orders = self.answers(fast, slow, index, queries, 10)
            found.append([
                order.index(own) + 1 if own in order else ranks[own]
                for own, order in enumerate(orders)
            ])  # fmt: skip
        return [100 * sum(1 / rank for rank in of_stage) / len(of_stage) for of_stage in found]
