"""What a region is, by the texts that name classes (docs/papers/pb_ovd.md, sections 3.6 and 3.8).

Shapes: M regions, K classes, D the width of the texts' embeddings.
"""

from torch import Tensor
from torch.nn import functional as F

from shared.losses.contrastive import similarity_logits


def text_logits(regions: Tensor, texts: Tensor) -> Tensor:
    """(M, K + 1) inner products of embeddings (M, D) with those of texts (K + 1, D), whose first
    row is zero: the background has logit 0. Neither is normalised, and there is no temperature."""
    return similarity_logits(regions, texts.to(regions), temperature=1.0)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, background: float) -> Tensor:
    """Mean over regions of their cross-entropy, that of regions of label 0 times `background`: a
    sum over the number of regions, not over their weights."""
    weights = (labels > 0) + background * (labels == 0)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (weights * loss).sum() / max(1, len(labels))
