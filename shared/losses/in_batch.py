"""Contrast within a batch: each row against all rows of the other side, of all ranks if asked for.

Shapes: B pairs of this rank, R references (of all ranks), d features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.distributed import all_gather, rank, world_size
from shared.losses.contrastive import similarity_logits


def in_batch_nce(
    queries: Tensor, references: Tensor, temperature: float | Tensor, first: int = 0
) -> Tensor:
    """InfoNCE of queries: the mean over B of -s_ii/tau + log sum_j exp(s_ij/tau).

    Of the references (R, d) row `first` + i belongs to query i of (B, d); the others are its
    negatives.
    """
    logits = similarity_logits(queries, references, temperature)
    return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device) + first)


class InBatchContrast:
    """The contrastive loss of two sides of a batch, as a part that a module holds.

    Args:
        symmetric: contrast references with queries as well, and take the mean of both directions.
        gather: take the negatives of all ranks, with their gradient; else those of this rank.
    """

    def __init__(self, symmetric: bool = False, gather: bool = True):
        self.symmetric, self.gather = symmetric, gather

    def __call__(self, queries: Tensor, references: Tensor, temperature: float | Tensor) -> Tensor:
        """(B, d), (B, d) -> the loss."""
        first = rank() * len(queries) if self.gather else 0
        loss = in_batch_nce(queries, self._gathered(references), temperature, first)
        if self.symmetric:
            other = in_batch_nce(references, self._gathered(queries), temperature, first)
            loss = (loss + other) / 2
        return loss

    def negatives(self, batch: int) -> int:
        """Number of rows that each query of a rank's batch is told apart from."""
        return batch * (world_size() if self.gather else 1) - 1

    def _gathered(self, rows: Tensor) -> Tensor:
        return all_gather(rows, grad=True) if self.gather else rows
