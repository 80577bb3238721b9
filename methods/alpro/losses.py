"""Prompting entity modelling (PEM): which entities a region of a video shows.

Shapes: B videos of N = h w patches, L tokens, D width, E entities.
Source: docs/papers/alpro.md, sections 3.6 to 3.8; salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:compute_mpm_with_encoder_out`,
`src/datasets/dataset_pretrain_sparse.py:random_erase`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

AREAS, ASPECTS = (0.3, 0.5), (0.3, 1 / 0.3)
TRIES = 64  # one in five boxes or so fits
Rule = Literal["paper", "official"]


def kept_clips(labels: Tensor, rule: Rule, threshold: float) -> Tensor:
    """(B,) whether soft labels (B, E) are worth learning: "paper": the most probable entity has at
    least the `threshold`; "official": it is not the first one, since the official code compares its
    number with the threshold."""
    if rule not in get_args(Rule):
        raise ValueError(f"keep must be one of {get_args(Rule)}, got {rule!r}")
    probability, entity = labels.max(dim=1)
    return probability >= threshold if rule == "paper" else entity >= threshold


def region_means(patches: Tensor, inside: Tensor) -> Tensor:
    """(B, D) means of patches (B, N, D) where `inside` (B, h, w) is True."""
    weights = inside.flatten(1).to(patches.dtype)[..., None]
    return (patches * weights).sum(dim=1) / weights.sum(dim=1)


def entity_loss(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The mean cross-entropy of logits and soft labels (B, E) over the clips that are kept (B,); 0,
    with a gradient of 0, if none is, where the official code gives NaN."""
    losses = -(labels * logits.float().log_softmax(dim=1)).sum(dim=1)
    return (losses * kept).sum() / kept.sum().clamp_min(1)


# --- the region ---


def proposed_boxes(draws: Tensor, size: int, patch: int) -> tuple[Tensor, Tensor]:
    """Boxes (..., 4) of left, top, width and height in px, whole patches, and whether each lies in
    a frame of `size` px. Draws (..., 4): share of the area, height by width, left and top."""
    share, aspect, left, top = draws.unbind(dim=-1)
    area = share * size**2
    box = torch.stack([left, top, (area / aspect).sqrt(), (area * aspect).sqrt()], dim=-1)
    box = box.long() // patch * patch
    corner, extent = box[..., :2], box[..., 2:]
    fits = (corner + extent <= size).all(dim=-1) & (extent > 0).all(dim=-1)
    return box, fits


def random_regions(uniforms: Tensor, size: int, patch: int) -> Tensor:
    """(B, h, w) True inside one box a clip, by numbers in [0, 1) of shape (B, tries, 4): of the
    first try that lies in the frame; of none the first box, moved and cut to fit."""
    spans = torch.tensor([AREAS, ASPECTS, (0, size), (0, size)], device=uniforms.device)
    low, high = spans.to(uniforms.dtype).unbind(dim=1)
    boxes, fits = proposed_boxes(low + (high - low) * uniforms, size, patch)
    box = boxes[torch.arange(len(boxes)), fits.long().argmax(dim=1)]
    extent = box[:, 2:].clamp(patch, size)
    first = torch.minimum(box[:, :2], size - extent) // patch
    last = first + extent // patch
    place = torch.arange(size // patch, device=uniforms.device)
    within = (place >= first[..., None]) & (place < last[..., None])
    return within[:, 1, :, None] & within[:, 0, None, :]


def blackened(clips: Tensor, inside: Tensor, black: Tensor) -> Tensor:
    """Clips (B, T, 3, S, S) with the colour `black` (3,) outside of the regions (B, h, w)."""
    mask = F.interpolate(inside[:, None].to(clips.dtype), clips.shape[-2:]).bool()
    return torch.where(mask[:, None], clips, black.to(clips)[:, None, None])
