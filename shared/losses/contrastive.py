"""InfoNCE and its kin. Everything is computed in float32, whatever autocast says.

Shapes: B queries, d features, K queue rows, R reference rows.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.distributed import all_gather, rank, world_size


def matmul_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b outside autocast: similarities and probabilities are compared with thresholds."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def similarity_logits(query: Tensor, reference: Tensor, temperature: float | Tensor) -> Tensor:
    """(B, d), (R, d) -> (B, R): dot products over temperature."""
    return matmul_float32(query, reference.T) / temperature


def instance_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, 1 + K): each query (B, d) against its own key (column 0) and the queue (K, d), all
    unit-norm, over temperature. The queue is copied, since a step writes into it before its
    backward pass."""
    queue = queue.detach().clone()
    positive = (query.float() * key.float()).sum(dim=1, keepdim=True) / temperature
    return torch.cat([positive, similarity_logits(query, queue, temperature)], dim=1)


def soft_target_nce(logits: Tensor, targets: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean over rows of - sum_j targets_ij log(softmax(logits)_ij + epsilon), both (B, R); the
    non-negative rows of targets sum to 1. CoMatch's epsilon is 1e-7."""
    if epsilon:
        log_probs = (logits.float().softmax(dim=1) + epsilon).log()
    else:
        log_probs = logits.float().log_softmax(dim=1)
    return -(targets * log_probs).sum(dim=1).mean()


def in_batch_nce(
    queries: Tensor, references: Tensor, temperature: float | Tensor, first: int = 0
) -> Tensor:
    """InfoNCE of queries, the mean over B of -s_ii/tau + log sum_j exp(s_ij/tau): of the references
    (R, d) row `first` + i belongs to query i of (B, d), the others are its negatives."""
    logits = similarity_logits(queries, references, temperature)
    return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device) + first)


class InBatchContrast:
    """The contrastive loss of two sides of a batch, as a part that a module holds: of queries, or
    the mean of both directions (`symmetric`), with the negatives of all ranks and their gradient
    (`gather`), or of this rank."""

    def __init__(self, symmetric: bool = False, gather: bool = True):
        self.symmetric, self.gather = symmetric, gather

    def __call__(self, queries: Tensor, references: Tensor, temperature: float | Tensor) -> Tensor:
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
