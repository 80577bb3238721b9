"""Anchors: boxes of given sizes and shapes around every cell of every level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.nn.detection.geometry import Geometry


class Anchors(nn.Module):
    """Anchors of a pyramid, level by level, row by row, cell by cell, ratio by ratio, size by size.

    In the legacy convention they are centred on the middle of a cell and their corners, which name
    pixels, are rounded; in torchvision's, on its corner. Detectron rounds the sides of a box of the
    area of a cell, and enlarges it (maskrcnn-benchmark's `generate_anchors`).

    Args:
        sizes: side, or several, of the square anchors of each level.
        strides: pixels between two cells of each level.
        ratios: height over width; the area stays.
    """

    def __init__(
        self,
        geometry: Geometry,
        sizes: Sequence[float | Sequence[float]],
        strides: Sequence[int],
        ratios: Sequence[float],
    ):
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"anchors.sizes has {len(sizes)} entries for {len(strides)} levels")
        self.strides = list(strides)
        own = [[size] if isinstance(size, int | float) else list(size) for size in sizes]
        if len({len(of_level) for of_level in own}) > 1:
            raise ValueError("anchors.sizes: give as many of each level, one head predicts all")
        self.per_cell = len(ratios) * len(own[0])
        shape = torch.tensor(ratios, dtype=torch.float64)
        heights = shape.sqrt()
        for level, (of_level, stride) in enumerate(zip(own, strides, strict=True)):
            shapes = torch.stack([1 / heights, heights], dim=1)  # (ratios, 2) of width and height
            if geometry.detectron:
                widths = (stride / heights).round()
                shapes = torch.stack([widths, (widths * shape).round()], dim=1) / stride
            half = torch.tensor(of_level)[:, None] * shapes[:, None] / 2  # (ratios, sizes, 2)
            middle = stride / 2 if geometry.legacy else 0.0
            ends = torch.cat([middle - half, middle + half], dim=2).flatten(0, 1)
            cell = geometry.from_ends(ends)
            cell = cell if geometry.detectron else cell.round()
            self.register_buffer(f"cell{level}", cell.to(torch.get_default_dtype()), False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(H W ratios sizes, 4) anchors for each of the feature maps (B, C, H, W)."""
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


def inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """(B, A) whether anchors (A, 4) lie within images of height and width `sizes` (B, 2)."""
    ends = sizes.flip(1)[:, None]
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < ends).all(dim=2)
