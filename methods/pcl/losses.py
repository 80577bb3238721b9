"""Prototypical contrast: logits of a query against prototypes, each with its own temperature.

Shapes: B queries of d dimensions, K prototypes of one granularity, r negatives.
Source: docs/papers/pcl.md, section 3.5 step 6; salesforce/PCL@964da1f
`pcl/builder.py:MoCo.forward`.
"""

import torch
from torch import Tensor

from shared.losses.contrastive import matmul_float32


def prototype_logits(query: Tensor, prototypes: Tensor, density: Tensor) -> Tensor:
    """q . c_j / phi_j: every COLUMN is divided by the concentration of its own prototype.

    Shapes: query (B, d), prototypes (R, d) of unit norm, density (R,). Returns (B, R). Gradient
    flows into the query only.
    """
    return matmul_float32(query, prototypes.detach().T) / density.detach()


def sampled_prototypes(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and targets of the sampled form: the batch's own prototypes first, in its order.

    So the positives of the other samples act as further negatives, and a prototype that two
    samples share appears twice.

    Args: positives (B,) and negatives (r,) prototype ids.
    Returns: column ids (B + r,), target columns 0..B-1 (B,).
    """
    return torch.cat([positives, negatives]), torch.arange(len(positives), device=positives.device)


def sample_negatives(
    positives: Tensor, candidates: int, number: int, generator: torch.Generator
) -> Tensor:
    """Prototype ids drawn uniformly without replacement from those that are nobody's positive.

    Args:
        positives: (B,) ids of this rank's batch, on any device.
        candidates: ids 0 .. candidates - 1 are drawn from.
        number: r; where fewer remain, all of them are returned (in random order).
        generator: on the CPU, so that a draw does not depend on the device.

    Returns: (min(r, remaining),) on the device of `positives`.
    """
    free = torch.ones(candidates, dtype=torch.bool)
    free[positives.cpu()] = False
    remaining = free.nonzero()[:, 0]  # sorted, unlike the set that the official code samples from
    order = torch.randperm(len(remaining), generator=generator)[:number]
    return remaining[order].to(positives.device)


def mask_shared_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """Take the second copy of a row's own prototype out of its softmax: -inf where it stands.

    Shapes: logits (B, B + r) with the columns of `sampled_prototypes`, positives (B,).
    """
    shared = positives[:, None] == positives[None, :]
    shared.fill_diagonal_(False)
    false_negatives = torch.zeros_like(logits, dtype=torch.bool)
    false_negatives[:, : len(positives)] = shared
    return logits.masked_fill(false_negatives, -torch.inf)
