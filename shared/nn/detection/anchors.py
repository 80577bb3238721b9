"""Anchors: boxes of given sizes and shapes around every cell of every level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.nn.detection.geometry import Geometry


class Anchors(nn.Module):
    """Anchors of a pyramid, level by level, row by row, cell by cell, ratio by ratio.

    In the legacy convention they are centred on the middle of a cell and their corners, which name
    pixels, are rounded; in torchvision's, on its corner.

    Args:
        sizes: side of the square anchor of each level.
        strides: pixels between two cells of each level.
        ratios: height over width; the area stays.
    """

    def __init__(
        self,
        geometry: Geometry,
        sizes: Sequence[float],
        strides: Sequence[int],
        ratios: Sequence[float],
    ):
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"anchors.sizes has {len(sizes)} entries for {len(strides)} levels")
        self.strides = list(strides)
        self.per_cell = len(ratios)
        heights = torch.tensor(ratios).sqrt()
        shapes = torch.stack([1 / heights, heights], dim=1)  # (ratios, 2) of width and height
        for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            half = size * shapes / 2
            middle = stride / 2 if geometry.legacy else 0.0
            cell = geometry.from_ends(torch.cat([middle - half, middle + half], dim=1))
            self.register_buffer(f"cell{level}", cell.round(), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(H W ratios, 4) anchors for each of the feature maps (B, C, H, W)."""
        anchors = []
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            cell = self.get_buffer(f"cell{level}")
            height, width = features.shape[-2:]
            y = torch.arange(height, device=cell.device) * stride
            x = torch.arange(width, device=cell.device) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell).reshape(-1, 4))
        return anchors
