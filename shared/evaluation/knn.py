"""Accuracy of a weighted k-nearest-neighbour vote in cosine similarity."""

import torch
from torch import Tensor
from torch.nn import functional as F

SIMILARITIES_AT_ONCE = 1 << 26  # 256 MiB of float32


@torch.no_grad()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    temperature: float | None = None,
) -> float:
    """Percent of queries (Q, d) whose label (Q,) wins the vote of their k most similar features of
    the bank (N, d), on the tensors' device, in pieces that bound the memory.

    A neighbour's vote weighs exp(similarity / temperature); with None each counts one, and among
    classes with equally many votes the smaller summed distance wins.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours of a bank with {len(bank)} features")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"the temperature of the vote must be positive, got {temperature}")
    if not len(queries):
        raise ValueError("no queries to classify")
    correct = 0
    size = max(1, SIMILARITIES_AT_ONCE // len(bank))
    scale = bank.float().norm(dim=1).clamp_min(1e-12).reciprocal()
    for rows, labels in zip(queries.split(size), query_labels.split(size), strict=True):
        similarity = (F.normalize(rows.float(), dim=1) @ bank.float().T).mul_(scale)
        nearest, index = similarity.topk(k, dim=1)
        predictions = vote(nearest, bank_labels[index], temperature)
        correct += int((predictions == labels).sum())
    return 100 * correct / len(queries)


def vote(similarity: Tensor, labels: Tensor, temperature: float | None) -> Tensor:
    """The class (Q,) that neighbours elect by cosine similarities and labels, (Q, k) each."""
    classes = int(labels.max()) + 1
    similarity = similarity.double()

    def per_class(weights: Tensor) -> Tensor:
        return weights.new_zeros(len(labels), classes).scatter_add(1, labels, weights)

    if temperature is not None:
        # The maximum cancels in the comparison; without it exp overflows at small temperatures.
        largest = similarity.amax(dim=1, keepdim=True)
        return per_class(((similarity - largest) / temperature).exp()).argmax(dim=1)
    counts = per_class(torch.ones_like(similarity))
    distance = per_class(1 - similarity)
    leading = counts == counts.amax(dim=1, keepdim=True)
    return distance.masked_fill(~leading, torch.inf).argmin(dim=1)
