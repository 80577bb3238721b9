"""Grad-CAM on attention: which patches of the image a text was matched by.

Shapes: B image-text pairs, H heads, L tokens of the text, N = g x g patches in rows from the top,
S side of an image in pixels. Source: docs/papers/albef.md, section 3.11.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from shared.nn.image_text import ImageTextEncoders
from shared.nn.text_transformer import TextTransformer, recorded
from shared.nn.vision_transformer import VisionTransformer, recorded_block

Objective = Literal["matching", "similarity"]
"""Whose gradient counts: that of the logit of "match", or of the similarity."""


class ImageTextModel(Protocol):
    """A model with `ImageTextEncoders`, the temperature `contrast.temp` of their similarities, and
    an `ImageTextMatching`."""

    encoders: Any
    contrast: Any
    matching: Any


class Saliency(NamedTuple):
    """What each pair looked at: `attention` (B, H, L, 1 + N), its `gradient` for the objective, and
    `scores`, the pairs' ITM logits (B, 2) or their similarities over the temperature (B,)."""

    attention: Tensor
    gradient: Tensor
    scores: Tensor

    def weighted(self, mask: Tensor | None = None) -> Tensor:
        """Attention times its positive gradient: (B, H, L, g, g), without the class token's column
        and, where the `mask` (B, L) is 0, without rows of padding."""
        product = self.attention[..., 1:] * self.gradient[..., 1:].clamp(min=0)
        if mask is not None:
            product = product * mask[:, None, :, None]
        side = math.isqrt(product.shape[-1])
        return product.unflatten(-1, (side, side))

    def words(self, mask: Tensor | None = None) -> Tensor:
        """One map for each token, the mean over heads: (B, L, g, g)."""
        return self.weighted(mask).mean(dim=1)

    def whole(self, mask: Tensor | None = None) -> Tensor:
        """One map for each text, the mean over heads and positions, padding too: (B, g, g)."""
        return self.words(mask).mean(dim=1)


@contextmanager
def gradients() -> Iterator[None]:
    """Computes gradients, also inside `torch.no_grad` and a Trainer's inference mode, whose tensors
    must be made `usable` in here."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def usable(x: Tensor) -> Tensor:
    """`x`, or a copy if it was made in inference mode, on which a graph may be built."""
    return x.clone() if x.is_inference() else x


def check_cross_attention(text_encoder: TextTransformer, layer: int) -> None:
    """Refuses a `layer` of the text stack without cross-attention."""
    first, last = text_encoder.fusion_layer, len(text_encoder.layers) - 1
    if not first <= layer <= last:
        raise ValueError(f"layer {layer} has no cross-attention: layers {first} to {last} have it")


def check_block(vit: VisionTransformer, block: int) -> None:
    """Refuses a block that the vision transformer does not have."""
    if not 0 <= block < len(vit.blocks):
        raise ValueError(f"no block {block}: the vision transformer has {len(vit.blocks)}, from 0")


def match_saliency(
    model: ImageTextModel, image_tokens: Tensor, ids: Tensor, mask: Tensor, layer: int
) -> Saliency:
    """Attention of each pair's words to the patches, for the ITM logit of "match".

    Of image tokens (R, 1 + N, C) and texts (B, L), B = r R, r consecutive texts belong to one
    image. Pairs do not see one another, so one backward pass of the sum serves all. The `layer` of
    the whole text stack, from 0, has cross-attention; in the last one only the class token has a
    gradient. The model should be in eval mode; nothing is added to the parameters' `grad`.
    """
    encoders: ImageTextEncoders = model.encoders
    check_cross_attention(encoders.text_encoder, layer)
    module: Any = encoders.text_encoder.layers[layer].cross_attention
    with gradients():
        ids, mask = usable(ids), usable(mask)
        with torch.no_grad():
            text_tokens = encoders.encode_text(ids, mask)[0]
        # So the map is part of a graph even if all parameters are frozen.
        image_tokens = usable(image_tokens).detach().requires_grad_()
        with recorded(module) as maps:
            logits = model.matching.logits(encoders.text_encoder, image_tokens, text_tokens, mask)
            (gradient,) = torch.autograd.grad(logits[:, 1].sum(), maps[0])
    attention, gradient = (  # the texts that share an image stood in a row
        x.unflatten(2, (-1, ids.shape[1])).transpose(1, 2).flatten(0, 1)
        for x in (maps[0].detach(), gradient)
    )
    return Saliency(attention, gradient, logits.detach())


def contrast_saliency(
    model: ImageTextModel, images: Tensor, ids: Tensor, mask: Tensor, block: int
) -> Saliency:
    """Attention of the image's class token to the patches in one block of the vision transformer,
    for the similarity of images (B, 3, S, S) and texts (B, L) over the temperature; L is 1."""
    encoders: ImageTextEncoders = model.encoders
    check_block(encoders.visual_encoder, block)
    with gradients():
        images = usable(images).detach().requires_grad_()
        with torch.no_grad():
            text = encoders.encode_text(usable(ids), usable(mask))[1]
        with recorded_block(encoders.visual_encoder, block) as maps:
            image = encoders.encode_image(images)[1]
            scores = (image * text).sum(dim=1) / model.contrast.temp
            (gradient,) = torch.autograd.grad(scores.sum(), maps[0])
    return Saliency(maps[0].detach()[:, :, :1], gradient[:, :, :1], scores.detach())


def looked_at(encoders: ImageTextEncoders, objective: Objective, layer: int | None = None) -> int:
    """The layer whose attention shows where the model looks: for `matching` one of the text stack,
    by default the third with cross-attention, for `similarity` a block of the vision transformer,
    by default the last; ValueError if there is no such `layer`."""
    text, vision = encoders.text_encoder, encoders.visual_encoder
    if objective == "matching":
        layer = third_fusion_layer(text) if layer is None else layer
        check_cross_attention(text, layer)
    else:
        layer = len(vision.blocks) - 1 if layer is None else layer
        check_block(vision, layer)
    return layer


def third_fusion_layer(text_encoder: TextTransformer) -> int:
    """The third layer with cross-attention (8 of 12 in ALBEF), or the last but one if that is
    earlier: in the last one words have no gradient."""
    last = len(text_encoder.layers) - 1
    return max(text_encoder.fusion_layer, min(text_encoder.fusion_layer + 2, last - 1))


def heat(values: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (g, g) as a smooth picture (H, W) in 0..1: min-max, bicubic, Gaussian blur with a sigma
    of 2 % of the longer side. A constant map becomes 0."""
    plane = F.interpolate(
        _min_max(values.float())[None, None], size, mode="bicubic", align_corners=False
    )
    blurred = gaussian_filter(plane[0, 0].cpu().numpy(), 0.02 * max(size))
    return _min_max(torch.from_numpy(blurred)).numpy()


def _min_max(values: Tensor) -> Tensor:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)
