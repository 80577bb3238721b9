"""Prototypical contrast: logits of a query against prototypes, each with its own temperature.

Shapes: B queries of d dimensions, K prototypes of one granularity, r negatives.
Source: docs/papers/pcl.md, section 3.5 step 6; salesforce/PCL@964da1f
`pcl/builder.py:MoCo.forward`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.losses.contrastive import matmul_float32


def prototype_logits(query: Tensor, prototypes: Tensor, density: Tensor) -> Tensor:
    """(B, R) q . c_j / phi_j: every COLUMN is divided by the concentration of its own prototype.

    Shapes: query (B, d), which alone gets gradient; prototypes (R, d), unit norm; density (R,).
    """
    return matmul_float32(query, prototypes.detach().T) / density.detach()


def sample_negatives(
    positives: Tensor, candidates: int, number: int, generator: torch.Generator
) -> Tensor:
    """(min(r, remaining),) ids below `candidates`, drawn uniformly without replacement from those
    that are nobody's positive: of none of `positives` (B,). The generator is on the CPU, so that a
    draw does not depend on the device."""
    free = torch.ones(candidates, dtype=torch.bool)
    free[positives.cpu()] = False
    remaining = free.nonzero()[:, 0]  # sorted, unlike the set that the official code samples from
    order = torch.randperm(len(remaining), generator=generator)[:number]
    return remaining[order].to(positives.device)


def mask_shared_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """Take the second copy of a row's own prototype, where -inf stands then, out of its softmax.

    Shapes: logits (B, B + r), of which column i is prototype positives_i; positives (B,).
    """
    shared = (positives[:, None] == positives).fill_diagonal_(False)
    drawn = logits.shape[1] - len(positives)
    return logits.masked_fill(F.pad(shared, (0, drawn)), -torch.inf)
