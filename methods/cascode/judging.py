"""The slow classifier at work in training: which pairs it judges, and their scores.

Shapes: B pairs of this rank, d hidden size. Source: docs/papers/cascode.md, sections 3.2 and 3.3;
microsoft/CodeBERT@c0de43d, the pair classifier of CodeBERT's code search.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.cascode.losses import (
    Pairs,
    hard_negatives,
    match_scores,
    pairs_with,
    uniform_negatives,
)
from methods.cascode.model import CodeEncoder, PairHead
from methods.cascode.scoring import encode_pairs
from methods.cascode.tokenizer import CodeTokenizer
from shared.distributed import own_rows, world_size
from shared.randomness import torch_generator

Negatives = Literal["uniform", "hard"]
HARD = 0.5  # share of hard negatives where they are asked for


class PairJudge:
    """Draws negatives and scores the pairs of a batch, as a part that `Slow` and `Shared` hold.

    Args:
        encoder, head: of the module that holds it; they are trained there.
        negatives: "uniform": another code of the batch, all equally likely; "hard": for every
            second query, by chance, the most similar one.
        seed: of the negatives.
        micro_batch: pairs that pass the encoder at once, of which alone the activations are
            kept (the others' are computed again for the gradient); null: all.
        k_test: candidates to re-rank; the first one decides `mrr` and the validation.
    """

    def __init__(
        self,
        encoder: CodeEncoder,
        head: PairHead,
        negatives: Negatives,
        seed: int,
        micro_batch: int | None,
        k_test: Sequence[int],
    ):
        if negatives not in get_args(Negatives):
            raise ValueError(f'negatives are "uniform" or "hard", got {negatives!r}')
        if not k_test or min(k_test) < 1:
            raise ValueError(f"k_test lists numbers of candidates from 1 on, got {list(k_test)}")
        self.encoder, self.head, self.seed = encoder, head, seed
        self.negatives, self.micro_batch, self.k_test = negatives, micro_batch, k_test

    def draw_pairs(self, step: int, size: int, similarity: Tensor | None, device: Any) -> Pairs:
        """Each query with its own code and with a negative, (2 B,).

        Negatives are a function of the seed, the step and the place in the batch of all ranks.

        Args:
            size: B. similarity: (B, B) of queries and codes, for hard negatives.
        """
        generator = torch_generator(self.seed, step, "negatives")
        draws = own_rows(torch.rand(size * world_size(), 2, generator=generator)).to(device)
        negatives = uniform_negatives(draws[:, 0])
        if self.negatives == "hard":
            assert similarity is not None
            negatives = hard_negatives(similarity, negatives, draws[:, 1] < HARD)
        return pairs_with(negatives)

    def __call__(
        self,
        batch: Mapping[str, Any],
        pairs: Pairs,
        tokenizer: CodeTokenizer,
        lengths: Mapping[str, int],
    ) -> Tensor:
        """(2 B,) the score of each pair of the batch."""
        limits = lengths["pair"], lengths["query"]
        rows = [
            tokenizer.pair(batch["query_tokens"][query], batch["code_tokens"][code], *limits)
            for query, code in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
        ]
        size = self.micro_batch
        if size is None or size >= len(rows):
            return self._scores(tokenizer, rows)
        return torch.cat(
            [
                checkpoint(self._scores, tokenizer, rows[start : start + size], use_reentrant=False)
                for start in range(0, len(rows), size)
            ]
        )

    def _scores(self, tokenizer: CodeTokenizer, rows: Sequence[Any]) -> Tensor:
        device = self.head.output.weight.device
        return match_scores(self.head(encode_pairs(self.encoder, tokenizer, rows, device)))
