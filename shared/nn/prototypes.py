"""One slowly moving unit vector a class: MoPro's momentum prototypes, ICCL's centroids."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.losses.contrastive import similarity_logits


class ClassPrototypes(nn.Module):
    """Class means of embeddings as a moving average, in the buffer `prototypes` (K, d): zeros, and
    so logits of 0, until the first sample of a class sets its direction."""

    prototypes: Tensor

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(num_classes, dim))

    @torch.no_grad()
    def update(
        self, features: Tensor, labels: Tensor, momentum: float, keep: Tensor | None = None
    ) -> None:
        """c_y <- m c_y + (1 - m) z for each row in order, then every prototype to unit norm.

        In closed form: of r rows of one class, the j-th counts (1 - m) m^(r - j) and the old
        prototype m^r; rows not to `keep` (B,) are skipped. Gather before calling.
        """
        if keep is not None:
            features, labels = features[keep], labels[keep]
        # A sum over the classes at hand as a matrix product: unlike a scatter it adds in a fixed
        # order, so that all ranks hold the same prototypes and a run can be repeated.
        classes, position = labels.unique(return_inverse=True)
        member = position == torch.arange(len(classes), device=labels.device)[:, None]
        rows = member.sum(dim=1, keepdim=True)
        later = rows - member.cumsum(dim=1)  # rows of the class that follow this one
        # In float64: the rounding error of 0.999 in float32 grows with the power.
        weights = ((1 - momentum) * momentum ** later.double() * member).float()
        decay = (momentum ** rows.double()).float()
        with torch.autocast(features.device.type, enabled=False):
            self.prototypes[classes] = decay * self.prototypes[classes] + weights @ features.float()
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1, eps=1e-12))

    def logits(self, query: Tensor, temperature: float) -> Tensor:
        """(B, d) -> (B, K) similarities over temperature to a copy of the prototypes, since a step
        updates them in place before its backward pass."""
        return similarity_logits(query, self.prototypes.clone(), temperature)
