"""Negative controls of SimCal's claims and its ablations (docs/papers/simcal.md, section 3.8)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.simcal.module import SimCal


class ImageLevelOnly(SimCal):
    """Class-balanced images, all of whose positives are trained on."""

    def kept_positives(self, labels: Tensor, drawn_for: Tensor | None) -> Tensor:
        return labels > 0


class Unbalanced(ImageLevelOnly):
    """As many steps with all positives and all negatives, of images from an ordinary sampler."""

    def negatives_beside(self, positives: int, negatives: int) -> int:
        return negatives


class ProposalLevelOnly(SimCal):
    """Images from an ordinary sampler, of each of which the positives of one class are trained on,
    any that it shows."""

    def kept_positives(self, labels: Tensor, drawn_for: Tensor | None) -> Tensor:
        shown = F.one_hot(labels, self.detector.num_classes + 1).amax(dim=1)[:, 1:].bool()
        draws = self.draws(len(shown), shown.shape[1], "class of an image").masked_fill(
            ~shown, -1.0
        )
        any_class = draws.argmax(dim=1) + 1
        return (labels == any_class[:, None]) & torch.gather(shown, 1, any_class[:, None] - 1)
