"""From activation maps of word pieces to the box of each object.

Shapes: O objects of an image, L tokens, P proposals, maps g x g, an image H x W; boxes are x1, y1,
x2, y2 in its pixels.
Source: docs/papers/pb_ovd.md, sections 3.2 and 3.3; salesforce/PB-OVD@f62bdfc
`pseudo_bbox_generation.py:generate_pseudo_bbox`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5  # of a map's maximum, below which it counts as 0
AREA_EXPONENT = 0.5
NO_BOX = -1.0  # score of a box that does not qualify


class ImageMaps(NamedTuple):
    """Maps (O, r, c) of the patches that an image's pixels take their values from, and the row of
    each line of pixels, (H,), and the column of each, (W,)."""

    values: Tensor
    rows: Tensor
    columns: Tensor

    def pixels(self) -> Tensor:
        """The maps at the image's size, (O, H, W)."""
        return self.values[:, self.rows][:, :, self.columns]


def object_maps(
    tokens: Tensor, spans: Sequence[tuple[int, int]], accumulate: bool = False
) -> Tensor:
    """(O, g, g) sums of the maps of tokens (L, g, g) over each object's span [left, right).

    With `accumulate` a sum replaces the map of its first token, so that a later object which begins
    there has the other tokens in it, as in the official code.
    """
    if accumulate:
        tokens, found = tokens.clone(), []
        for left, right in spans:
            tokens[left] = tokens[left:right].sum(dim=0)
            found.append(tokens[left].clone())
        return torch.stack(found)
    edges = torch.tensor(spans, device=tokens.device)
    place = torch.arange(len(tokens), device=tokens.device)
    inside = (place >= edges[:, :1]) & (place < edges[:, 1:])
    return torch.einsum("ol,lyx->oyx", inside.to(tokens), tokens)


def normalised(maps: Tensor, size: tuple[int, int], threshold: float = THRESHOLD) -> ImageMaps:
    """Maps (O, g, g) at the size (H, W) of their image by nearest neighbour, brought to 0..1, and 0
    below `threshold` of the maximum. A constant map becomes NaN."""
    (rows, row_of), (columns, column_of) = (
        torch.unique(_nearest(cells, pixels).to(maps.device), return_inverse=True)
        for cells, pixels in zip(maps.shape[1:], size, strict=True)
    )
    values = maps.double()[:, rows][:, :, columns]
    least, most = (bound(values, dim=(1, 2), keepdim=True) for bound in (torch.amin, torch.amax))
    values = (values - least) / (most - least)
    return ImageMaps(values.masked_fill(values < threshold, 0), row_of, column_of)


def box_scores(maps: ImageMaps, boxes: Tensor, exponent: float = AREA_EXPONENT) -> Tensor:
    """(O, P) float64: sum of each map inside each of the boxes (P, 4) over (area)^exponent, NO_BOX
    where a box leaves the image, has no area or no row, or the map is NaN.

    Coordinates are cut to whole pixels for the sum alone. A patch's value counts by how many rows
    and columns of its pixels a box has, so that no map is ever made as large as the image.
    """
    boxes = boxes.to(maps.values.device, torch.float64)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    rows, columns = (
        _covered(lines, low, high)
        for lines, low, high in ((maps.rows, y1, y2), (maps.columns, x1, x2))
    )
    inside = torch.einsum("pr,orc,pc->op", rows, maps.values, columns)
    inside = inside.masked_fill(columns.sum(dim=1) == 0, 0)  # nothing is summed: not even NaN
    area = (x2 - x1) * (y2 - y1)
    scores = inside / area**exponent
    height, width = len(maps.rows), len(maps.columns)
    proper = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
    proper &= (area > 0) & (rows.sum(dim=1) > 0)
    return scores.masked_fill(~proper | scores.isnan(), NO_BOX)


def best_boxes(scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(O, 4) boxes and (O,) scores of the proposals that score highest, the first of equal ones; of
    an object for which none qualifies, zeros and NO_BOX."""
    boxes = boxes.to(scores.device, torch.float64)
    nothing = scores.new_full((len(scores), 1), NO_BOX)  # behind the others, so they win ties
    best, place = torch.cat([scores, nothing], dim=1).max(dim=1)
    chosen = torch.cat([boxes, boxes.new_zeros(1, 4)])[place]
    return chosen.masked_fill((best == NO_BOX)[:, None], 0), best


def _nearest(cells: int, pixels: int) -> Tensor:
    """(pixels,) int64: which of `cells` each pixel takes its value from."""
    numbers = torch.arange(cells, dtype=torch.float32)[None, None]
    return F.interpolate(numbers, pixels, mode="nearest")[0, 0].long()


def _covered(lines: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(P, r) float64: how many of the pixels int(low) to int(high) - 1 belong to each patch, of
    lines (H,) that name the patch of each pixel."""
    counts = F.one_hot(lines).double().cumsum(dim=0)
    upto = F.pad(counts, (0, 0, 1, 0))  # in front: no pixel, no patch
    first, last = (edge.long().clamp(0, len(lines)) for edge in (low, high))
    return upto[last.maximum(first)] - upto[first]
