"""CasCode's binary matching of pairs and the negatives that it learns from.

Shapes: B pairs of this rank, P pairs to be judged. Source: docs/papers/cascode.md, sections 3.1
and 3.2; the contrast of queries and codes is `shared.losses.contrastive`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Pairs(NamedTuple):
    """Pairs to be judged, each (2 B,): row of the query, row of the code, 1.0 for a match."""

    queries: Tensor
    codes: Tensor
    labels: Tensor


def pairs_with(negatives: Tensor) -> Pairs:
    """Each query with its own code, then each query with the code that `negatives` (B,) names."""
    every = torch.arange(len(negatives), device=negatives.device)
    labels = torch.cat([torch.ones(len(every)), torch.zeros(len(every))])
    return Pairs(every.repeat(2), torch.cat([every, negatives]), labels.to(negatives.device))


def match_scores(logits: Tensor) -> Tensor:
    """(P, 2) -> (P,): z_1 - z_0, ordered as the probability of a match; officially z_1 alone."""
    logits = logits.float()
    return logits[:, 1] - logits[:, 0]


def matching_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over pairs of -log p for matches, -log(1 - p) for others, p = sigmoid(score): of
    `match_scores` the two-class cross-entropy of the logits."""
    return F.binary_cross_entropy_with_logits(scores, labels)


def uniform_negatives(uniforms: Tensor) -> Tensor:
    """(B,) numbers in [0, 1) -> for each query the row of another one's code, equally likely."""
    size = len(uniforms)
    if size < 2:
        raise ValueError("a batch of one pair has no negative: raise batch_size")
    steps = 1 + (uniforms * (size - 1)).long().clamp_max(size - 2)
    return (torch.arange(size, device=uniforms.device) + steps) % size


def hard_negatives(similarity: Tensor, uniform: Tensor, chosen: Tensor) -> Tensor:
    """(B,) rows: where `chosen` (B,) the most similar code but the own one, else that of `uniform`
    (B,); through the `similarity` (B, B) of queries and codes no gradient flows."""
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    hardest = similarity.detach().masked_fill(own, -torch.inf).argmax(dim=1)
    return torch.where(chosen, hardest, uniform)
