"""Histograms of oriented gradients (Dalal and Triggs, 2005) as the first layer of a network.

What tells drawn things apart are edges and flat colours, whoever drew them. A network that begins
with both need not learn them from a few thousand pictures
(docs/decisions/017-a-zoo-of-small-models.md).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = 9  # of half a turn, as in the paper


class OrientedGradients(nn.Module):
    """(B, 3, S, S) -> (B, 9 + 3, S / cell, S / cell): per cell the square roots of the strength of
    edges by orientation, and the mean colour. Nothing is learned, and no gradient passes.

    An edge is that of the channel where it's strongest, shared by the two nearest bins.
    """

    directions: Tensor
    channels = BINS + 3

    def __init__(self, cell: int):
        super().__init__()
        self.cell = cell
        # Orientations are directions at twice the angle: an edge has no sign.
        angles = (torch.arange(BINS) + 0.5) * (2 * math.pi / BINS)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None, None]
        self.register_buffer("directions", directions, persistent=False)
        self.reach = math.cos(2 * math.pi / BINS)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        squared = across.square() + down.square()
        strongest = squared.argmax(dim=1, keepdim=True)
        strength = squared.gather(1, strongest).sqrt() + 1e-6
        x, y = (side.gather(1, strongest) / strength for side in (across, down))
        doubled = torch.cat([x.square() - y.square(), 2 * x * y], dim=1)
        likeness = F.conv2d(doubled, self.directions) - self.reach  # 0 at the next bin's middle
        shares = F.relu(likeness) / (1 - self.reach)
        edges = F.avg_pool2d(F.avg_pool2d(shares * strength, 3, 1, 1), self.cell)
        return torch.cat([(edges + 1e-6).sqrt(), F.avg_pool2d(images, self.cell)], dim=1)
