"""What a detector is handed, in training and in evaluation.

Shapes: B images, padded to height H and width W; N objects and C ignored regions of one image,
whose true size after resizing is h x w.
"""

from typing import TypedDict

from torch import Tensor

Target = dict[str, Tensor]
"""`boxes` (N, 4) float32, x1 y1 x2 y2 in pixels of the resized image; `labels` (N,) int64 in 1..K,
the rank of the category's id, 0 being background; `crowd_boxes` (C, 4) float32, regions that are
neither object nor background; `masks` (N, h, w) uint8 where the data module was asked for them."""


class DetectionBatch(TypedDict):
    """Images of one step with what is to be found in them."""

    images: Tensor
    """(B, 3, H, W) float32, normalised; what lies outside an image's own size is zero."""
    sizes: Tensor
    """(B, 2) int64, height and width after resizing, without padding."""
    original_sizes: Tensor
    """(B, 2) int64, height and width of the file."""
    image_ids: Tensor
    """(B,) int64, as the annotation file numbers the images."""
    indices: Tensor
    """(B,) int64, the images' places in the set."""
    targets: list[Target]
    """One for each image."""
    sampled_classes: Tensor | None
    """(B,) int64, the label that each image was drawn for by a bi-level sampler; None from every
    other sampler."""
