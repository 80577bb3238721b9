"""Histograms of oriented gradients (Dalal and Triggs, 2005) as the first layer of a network.

What tells drawn things apart are edges and flat colours, whoever drew them. A network that begins
with both need not learn them from a few thousand pictures
(docs/decisions/017-a-zoo-of-small-models.md).
"""

import math
from functools import partial

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
    pooling: Tensor
    channels = BINS + 3

    def __init__(self, cell: int):
        super().__init__()
        self.cell = cell
        # Orientations are directions at twice the angle: an edge has no sign.
        angles = (torch.arange(BINS) + 0.5) * (2 * math.pi / BINS)
        self.register_buffer(
            "directions", torch.stack([angles.cos(), angles.sin()], dim=1), persistent=False
        )
        self.reach = math.cos(2 * math.pi / BINS)
        # The mean of 3 x 3 pixels, then that of a cell, in one kernel of cell + 2.
        mean = F.pad(torch.full((1, 1, cell, cell), 1 / cell**2), (1, 1, 1, 1))
        pooling = F.avg_pool2d(mean, 3, 1, 1).expand(BINS, -1, -1, -1)
        self.register_buffer("pooling", pooling.contiguous(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x, y, strength = self.edges(images)
        doubled = torch.cat([x.square() - y.square(), 2 * x * y], dim=1)
        # 0 at the next bin's middle. A product: as a convolution it costs ten times as much.
        likeness = (self.directions @ doubled.flatten(2)).unflatten(2, images.shape[2:])
        shares = F.relu(likeness - self.reach) / (1 - self.reach)
        pooled = F.conv2d(shares * strength, self.pooling, stride=self.cell, padding=1, groups=BINS)
        return torch.cat([(pooled + 1e-6).sqrt(), F.avg_pool2d(images, self.cell)], dim=1)

    @staticmethod
    def edges(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The direction (x, y) of the edge at each pixel, and its strength: (B, 1, S, S) each."""
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        squared = across.square() + down.square()
        # Three comparisons a pixel: `argmax` over so few channels costs five times as much.
        strongest, *others = zip(
            *(each.split(1, 1) for each in (across, down, squared)), strict=True
        )
        for channel in others:
            larger = channel[2] > strongest[2]
            strongest = tuple(map(partial(torch.where, larger), channel, strongest))
        x, y, most = strongest
        strength = most.sqrt() + 1e-6
        return x / strength, y / strength, strength
