"""CasCode: a fast encoder to search with, a slow one to re-rank with, and one that is both.

What the three have in common (optimiser, evaluation by the cascade) is in `frame.py`, the drawing
and scoring of pairs in `judging.py`.

Shapes: B pairs of this rank, L tokens, d vector size.
Source: docs/papers/cascode.md, sections 3.1 to 3.6; microsoft/CodeBERT@c0de43d `train` of
GraphCodeBERT's and UniXcoder's code search (fast) and of CodeBERT's pair classifier (slow).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from methods.cascode.encoders import load_searcher
from methods.cascode.frame import Batch, CodeSearch
from methods.cascode.judging import Negatives, PairJudge
from methods.cascode.losses import Pairs, matching_loss
from methods.cascode.model import CodeEncoder, PairHead
from shared.losses.in_batch import InBatchContrast


class Fast(CodeSearch):
    """The first stage: codes and queries become vectors, trained by contrast within the batch.

    Args:
        temperature: tau, fixed; 1 with `normalize: false`, as GraphCodeBERT.
        symmetric, gather: see `InBatchContrast`.
        frame: see `CodeSearch`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.temperature, self.contrast = temperature, InBatchContrast(symmetric, gather)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        loss = self.contrast(queries, codes, self.temperature)
        return self.total_loss({"loss_fast": loss}, {}, batch["indices"])


class Slow(CodeSearch):
    """The second stage: judges a query and a code that it reads together.

    Args:
        fast: checkpoint of the first stage, which is not trained: it finds the candidates of the
            evaluation, and hard negatives.
        negatives, slow_micro_batch, k_test: see `PairJudge`.
        head_dropout: in the head.
        frame: see `CodeSearch`.
    """

    judge: PairJudge

    def __init__(
        self,
        fast: str,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.classifier = PairHead(self.encoder.text.width, head_dropout)
        self.judge = PairJudge(
            self.encoder, self.classifier, negatives, self.seed, slow_micro_batch, k_test
        )
        self.fast = fast
        self._first_stage: list[CodeEncoder] = []  # in a list, it is no part of this module

    @property
    def searcher(self) -> CodeEncoder:
        if not self._first_stage:
            self._first_stage.append(load_searcher(self.fast).eval().requires_grad_(False))
        return self._first_stage[0].to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pairs = self.pairs(batch)
        scores = self.judge(batch, pairs, self.tokenizer, self.lengths)
        loss = matching_loss(scores, pairs.labels)
        return self.total_loss({"loss_slow": loss}, {}, batch["indices"])

    def pairs(self, batch: Batch) -> Pairs:
        """The pairs that are judged in a step."""
        similarity = self.similarity(batch) if self.judge.negatives == "hard" else None
        return self.judge.draw_pairs(
            self.global_step, len(batch["indices"]), similarity, self.device
        )

    @torch.no_grad()
    def similarity(self, batch: Batch) -> Tensor:
        """(B, B) of the batch's queries and codes, by the first stage."""
        queries = self.searcher(batch["query_ids"], batch["query_mask"])
        return queries @ self.searcher(batch["code_ids"], batch["code_mask"]).T


class Shared(CodeSearch):
    """One encoder for both stages, trained for both at once.

    Args:
        temperature, symmetric, gather: see `Fast`.
        weight_fast, weight_slow: of the two losses.
        negatives, head_dropout, slow_micro_batch, k_test: see `Slow`.
        frame: see `CodeSearch`.
    """

    judge: PairJudge

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        weight_fast: float = 0.5,
        weight_slow: float = 0.5,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.temperature, self.contrast = temperature, InBatchContrast(symmetric, gather)
        self.classifier = PairHead(self.encoder.text.width, head_dropout)
        self.judge = PairJudge(
            self.encoder, self.classifier, negatives, self.seed, slow_micro_batch, k_test
        )
        self.weights = {"loss_fast": weight_fast, "loss_slow": weight_slow}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        pairs = self.judge.draw_pairs(
            self.global_step, len(queries), queries @ codes.T, self.device
        )
        scores = self.judge(batch, pairs, self.tokenizer, self.lengths)
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        losses = {
            "loss_fast": self.contrast(queries, codes, self.temperature),
            "loss_slow": matching_loss(scores, pairs.labels),
        }
        return self.total_loss(losses, self.weights, batch["indices"])
