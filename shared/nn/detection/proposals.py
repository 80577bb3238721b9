"""The first stage: which boxes may hold an object of any class.

Shapes: B images, A anchors of all levels, P proposals of an image at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers

from shared.nn.detection.anchors import Anchors
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.selection import leading_of_each_image

STDS = (1.0, 1.0, 1.0, 1.0)  # of the deltas of anchors
MOST = 100_000  # proposals of an image, whatever a checkpoint says


@dataclass(frozen=True)
class Counts:
    """How many boxes of each level take part in NMS, and how many of an image are kept."""

    before_nms: int
    kept: int

    def __post_init__(self) -> None:
        if not (1 <= self.before_nms <= MOST and 1 <= self.kept <= MOST):
            told = f"before_nms={self.before_nms} and kept={self.kept}"
            raise ValueError(f"detector.proposals: {told}, both from 1 to {MOST}")


class AnchorOutputs(NamedTuple):
    """Objectness logits (B, A) and deltas (B, A, 4) of the anchors (A, 4), which come level by
    level, `counts` of each."""

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: list[int]


class Proposals(NamedTuple):
    """Boxes (B, P, 4) by falling objectness (B, P); what pads an image's own is not `valid`."""

    boxes: Tensor
    scores: Tensor
    valid: Tensor

    def rois(self) -> Tensor:
        """The valid boxes of all images, (M, 5), each behind its image's row."""
        return rois(self.boxes, self.valid)


def rois(boxes: Tensor, chosen: Tensor) -> Tensor:
    """The chosen (B, P) boxes (B, P, 4), image by image, as (M, 5): image's row, x1, y1, x2, y2."""
    rows = chosen.nonzero()[:, :1]
    return torch.cat([rows.to(boxes.dtype), boxes[chosen]], dim=1)


class RegionProposalNetwork(nn.Module):
    """RPN on the maps of a pyramid; its layers are torchvision's.

    Args:
        anchors: see `Anchors`, without the strides.
    """

    def __init__(
        self, geometry: Geometry, channels: int, strides: Sequence[int], anchors: Mapping[str, Any]
    ):
        super().__init__()
        self.geometry = geometry
        self.anchors = Anchors(geometry, strides=strides, **anchors)
        self.head = RPNHead(channels, self.anchors.per_cell)

    def forward(self, maps: Sequence[Tensor]) -> AnchorOutputs:
        objectness, deltas = self.head(list(maps))
        anchors = self.anchors(maps)
        flat, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        images, every = len(maps[0]), torch.cat(anchors)
        return AnchorOutputs(
            flat.reshape(images, -1).float(),
            flat_deltas.reshape(images, -1, 4).float(),
            every,
            [len(level) for level in anchors],
        )

    @torch.no_grad()
    def propose(
        self, outputs: AnchorOutputs, sizes: Tensor, counts: Counts, nms: float
    ) -> Proposals:
        """The `counts.kept` best boxes of each image after NMS within each level, (B, kept).

        Args:
            sizes: (B, 2) height and width of the images without padding.
        """
        kept = counts.kept
        starts = [0, *accumulate(outputs.counts)]
        best, levels = [], []
        for number, (start, count) in enumerate(zip(starts, outputs.counts, strict=False)):
            scores = outputs.objectness[:, start : start + count]
            top = scores.topk(min(counts.before_nms, count), dim=1).indices
            best.append(top + start)
            levels.append(torch.full_like(top, number))
        rows, level = torch.cat(best, dim=1), torch.cat(levels, dim=1)
        scores = outputs.objectness.gather(1, rows)
        deltas = outputs.deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        boxes = self.geometry.decode(outputs.anchors[rows], deltas, STDS)
        boxes = self.geometry.clip(boxes, sizes[:, None])
        ended = self.geometry.ends(boxes)
        proper = (ended[..., 2:] > ended[..., :2]).all(dim=2)

        places = torch.arange(len(rows), device=rows.device)
        image = places[:, None].expand_as(rows)
        group = image * len(outputs.counts) + level
        stay = self.geometry.nms(boxes[proper], scores[proper], group[proper], nms)
        places = proper.flatten().nonzero()[:, 0][stay]  # in (B, all levels), by falling score
        leading, place = leading_of_each_image(image.flatten()[places], len(rows), kept)
        places = places[leading]
        proposals = Proposals(
            boxes.new_zeros(len(rows), kept, 4),
            scores.new_zeros(len(rows), kept),
            torch.zeros(len(rows), kept, dtype=torch.bool, device=rows.device),
        )
        proposals.boxes[place] = boxes.flatten(0, 1)[places]
        proposals.scores[place] = scores.flatten()[places]
        proposals.valid[place] = True
        return proposals
