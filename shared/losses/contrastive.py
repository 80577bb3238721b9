"""InfoNCE and its kin. Everything is computed in float32, whatever autocast says.

Shapes: B queries, d features, K queue rows, R reference rows.
"""

import torch
from torch import Tensor


def matmul_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b outside autocast: similarities and probabilities are compared with thresholds."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def similarity_logits(query: Tensor, reference: Tensor, temperature: float | Tensor) -> Tensor:
    """(B, d), (R, d) -> (B, R): dot products over temperature."""
    return matmul_float32(query, reference.T) / temperature


def instance_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, 1 + K): each query against its own key (column 0) and the queue, over temperature.

    Args: query (B, d), key (B, d), queue (K, d), all unit-norm. The queue is a constant and is
    copied, because a step writes the batch into it before its backward pass.
    """
    queue = queue.detach().clone()
    positive = (query.float() * key.float()).sum(dim=1, keepdim=True) / temperature
    return torch.cat([positive, similarity_logits(query, queue, temperature)], dim=1)


def soft_target_nce(logits: Tensor, targets: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean over rows of - sum_j targets_ij log(softmax(logits)_ij + epsilon), both (B, R).

    The non-negative rows of targets sum to 1; several positives and self-loops are allowed.
    `epsilon` is added inside the logarithm (CoMatch: 1e-7); with 0 a stable log-softmax is used.
    """
    if epsilon:
        log_probs = (logits.float().softmax(dim=1) + epsilon).log()
    else:
        log_probs = logits.float().log_softmax(dim=1)
    return -(targets * log_probs).sum(dim=1).mean()
