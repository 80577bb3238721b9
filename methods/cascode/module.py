"""CasCode: a fast encoder to search with, a slow one to re-rank with, and one that is both.

What the three have in common (optimiser, evaluation by the cascade) is in `frame.py`.

Shapes: B pairs of this rank, L tokens, d vector size.
Source: docs/papers/cascode.md, sections 3.1 to 3.6; microsoft/CodeBERT@c0de43d `train` of
GraphCodeBERT's and UniXcoder's code search (fast) and of CodeBERT's pair classifier (slow).
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.cascode.encoders import load_searcher
from methods.cascode.frame import Batch, CodeSearch
from methods.cascode.losses import (
    Pairs,
    hard_negatives,
    match_scores,
    matching_loss,
    pairs_with,
    uniform_negatives,
)
from methods.cascode.model import CodeEncoder, PairHead
from methods.cascode.scoring import encode_pairs
from shared.distributed import own_rows, world_size
from shared.losses.in_batch import InBatchContrast
from shared.randomness import torch_generator

Negatives = Literal["uniform", "hard"]
HARD = 0.5  # share of hard negatives where they are asked for


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


class Judging(CodeSearch):
    """What `Slow` and `Shared` have in common: a head that judges pairs, and which ones it learns.

    Args:
        negatives: "uniform": another code of the batch, all equally likely; "hard": for every
            second query, by chance, the most similar one.
        head_dropout: in the head.
        slow_micro_batch: pairs that pass the encoder at once, of which alone the activations are
            kept (the others' are computed again for the gradient); null: all.
        k_test: candidates to re-rank; the first one decides `mrr` and the validation.
        frame: see `CodeSearch`.
    """

    def __init__(
        self,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        if negatives not in get_args(Negatives):
            raise ValueError(f'negatives are "uniform" or "hard", got {negatives!r}')
        if not k_test or min(k_test) < 1:
            raise ValueError(f"k_test lists numbers of candidates from 1 on, got {list(k_test)}")
        self.classifier = PairHead(self.encoder.text.width, head_dropout)
        self.negatives, self.micro_batch, self.k_test = negatives, slow_micro_batch, k_test

    def draw_pairs(self, size: int, similarity: Tensor | None) -> Pairs:
        """Each query with its own code and with a negative, (2 B,).

        Negatives are a function of the seed, the step and the place in the batch of all ranks.

        Args:
            size: B. similarity: (B, B) of queries and codes, for hard negatives.
        """
        generator = torch_generator(self.seed, self.global_step, "negatives")
        draws = own_rows(torch.rand(size * world_size(), 2, generator=generator)).to(self.device)
        negatives = uniform_negatives(draws[:, 0])
        if self.negatives == "hard":
            assert similarity is not None
            negatives = hard_negatives(similarity, negatives, draws[:, 1] < HARD)
        return pairs_with(negatives)

    def judge(self, batch: Batch, pairs: Pairs) -> Tensor:
        """(2 B,) the score of each pair of the batch."""
        limits = self.lengths["pair"], self.lengths["query"]
        rows = [
            self.tokenizer.pair(batch["query_tokens"][query], batch["code_tokens"][code], *limits)
            for query, code in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
        ]
        size = self.micro_batch
        if size is None or size >= len(rows):
            return self._scores(rows)
        starts = range(0, len(rows), size)
        return torch.cat(
            [checkpoint(self._scores, rows[i : i + size], use_reentrant=False) for i in starts]
        )

    def _scores(self, rows: Sequence[Any]) -> Tensor:
        first = encode_pairs(self.encoder, self.tokenizer, rows, self.device)
        return match_scores(self.classifier(first))


class Slow(Judging):
    """The second stage: judges a query and a code that it reads together.

    Args:
        fast: checkpoint of the first stage, which is not trained: it finds the candidates of the
            evaluation, and hard negatives.
        judging: see `Judging`.
    """

    def __init__(self, fast: str, **judging: Any):
        super().__init__(**judging)
        self.save_hyperparameters()
        self.fast = fast
        self._first_stage: list[CodeEncoder] = []  # in a list, it is no part of this module

    @property
    def searcher(self) -> CodeEncoder:
        if not self._first_stage:
            self._first_stage.append(load_searcher(self.fast).eval().requires_grad_(False))
        return self._first_stage[0].to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pairs = self.pairs(batch)
        loss = matching_loss(self.judge(batch, pairs), pairs.labels)
        return self.total_loss({"loss_slow": loss}, {}, batch["indices"])

    @torch.no_grad()
    def pairs(self, batch: Batch) -> Pairs:
        """The pairs that are judged in a step; the first stage says how similar codes are."""
        similarity = None
        if self.negatives == "hard":
            queries = self.searcher(batch["query_ids"], batch["query_mask"])
            similarity = queries @ self.searcher(batch["code_ids"], batch["code_mask"]).T
        return self.draw_pairs(len(batch["indices"]), similarity)


class Shared(Judging):
    """One encoder for both stages, trained for both at once.

    Args:
        temperature, symmetric, gather: see `Fast`.
        weight_fast, weight_slow: of the two losses.
        judging: see `Judging`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        weight_fast: float = 0.5,
        weight_slow: float = 0.5,
        **judging: Any,
    ):
        super().__init__(**judging)
        self.save_hyperparameters()
        self.temperature, self.contrast = temperature, InBatchContrast(symmetric, gather)
        self.weights = {"loss_fast": weight_fast, "loss_slow": weight_slow}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        pairs = self.draw_pairs(len(queries), queries @ codes.T)
        scores = self.judge(batch, pairs)
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        losses = {
            "loss_fast": self.contrast(queries, codes, self.temperature),
            "loss_slow": matching_loss(scores, pairs.labels),
        }
        return self.total_loss(losses, self.weights, batch["indices"])
