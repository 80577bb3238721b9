"""Classification of texts about images, softened by the momentum model (docs/papers/albef.md,
section 3.9).

Shapes: B entries, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from shared.losses.contrastive import soft_target_nce
from shared.losses.image_text import soften


def distilled_cross_entropy(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """(1 - alpha) cross-entropy with the labels + alpha cross-entropy with the teacher's softmax.

    Args: logits and teacher_logits (B, C), labels (B,). Without a teacher alpha has no effect.
    No gradient reaches the teacher. Computed in float32.
    """
    targets = F.one_hot(labels, logits.shape[1]).float()
    if teacher_logits is not None:
        targets = soften(targets, teacher_logits.detach(), alpha)
    return soft_target_nce(logits, targets)
