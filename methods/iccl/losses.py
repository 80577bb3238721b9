"""The equations of ICCL's representation stage (docs/papers/iccl.md, sections 3.3 and 3.4).

Shapes: B images, K classes. lambda always weighs the class-agnostic image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.distributed import own_rows, world_size

LAMBDA_STREAM = 0x1CC1  # keeps these draws apart from others of the same (seed, step)


def draw_lambda(mix: Mapping[str, Any], count: int, seed: int, step: int) -> Tensor:
    """(B,) lambda ~ Beta(alpha, alpha) of this rank's `count` images, one a sample or one a batch:
    a function of (seed, step). No max(lambda, 1 - lambda): the two sources have different roles."""
    generator = np.random.default_rng([seed & (2**64 - 1), step, LAMBDA_STREAM])
    everyone = count * world_size()
    draws = 1 if mix["granularity"] == "batch" else everyone
    lam = generator.beta(mix["alpha"], mix["alpha"], draws).astype(np.float32)
    return own_rows(torch.from_numpy(lam).expand(everyone))


def check_mix(mix: Mapping[str, Any]) -> None:
    """Raises ValueError for a granularity or alpha that cannot be drawn from."""
    if mix["granularity"] not in ("sample", "batch"):
        raise ValueError(f"method.mix.granularity={mix['granularity']!r}: expected sample or batch")
    if not mix["alpha"] > 0:
        raise ValueError(f"method.mix.alpha={mix['alpha']}: Beta(alpha, alpha) needs alpha above 0")


def ldam_margins(counts: Tensor, largest: float) -> Tensor:
    """(K,) margins, proportional to n_k^(-1/4) of the classes' training images n (K,); that of the
    rarest class is `largest` (LDAM, Cao et al. 2019, equation 12)."""
    margins = counts.double() ** -0.25
    return (largest * margins / margins.max()).float()


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """(K,) weights (1 - beta) / (1 - beta^n_k), the inverse effective numbers of images, with mean
    one; all ones for `beta` 0."""
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.mean()).float()


def ldam_loss(
    cosines: Tensor, labels: Tensor, margins: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """The weighted mean, as PyTorch's, of the cross-entropies of `scale` times the cosines (B, K),
    those of the true classes less their margins (kaidic/LDAM-DRW `losses.py:LDAMLoss`)."""
    own = F.one_hot(labels, len(margins)) * margins
    return F.cross_entropy(scale * (cosines.float() - own), labels, weight=weights)


def interpolate(images: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """(B, ...) x_m = lambda x_u + (1 - lambda) x_a of class-agnostic images and aware partners."""
    lam = lam.view(-1, *[1] * (images.dim() - 1))
    return lam * images + (1 - lam) * partners


def interpolated_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor
) -> Tensor:
    """Mean over the batch of -lambda log p(y_u) - (1 - lambda) log p(y_a), p = softmax(logits).

    Of classifier logits (B, K) it is L_ce(m); of similarities to the centroids over the temperature
    it is L_icc(m), the interpolative centroid contrastive loss: an interpolated image must retrieve
    the centroids of both its source classes.
    """
    log_probs = logits.float().log_softmax(dim=1)
    return (
        lam * F.nll_loss(log_probs, labels, reduction="none")
        + (1 - lam) * F.nll_loss(log_probs, partner_labels, reduction="none")
    ).mean()
