"""The vision transformer of the vision-language papers: timm's, all of whose tokens are used.

Shapes: B images, N = (image_size / patch_size)^2 patches, C width. Keys are timm's and DeiT's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.models import checkpoint_seq
from timm.models import vision_transformer as timm_vit
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from shared.nn.oriented_gradients import OrientedGradients
from shared.nn.wide_resnet import PreActivationBlock


class VisionTransformer(timm_vit.VisionTransformer):
    """Pre-norm ViT: images (B, 3, S, S) -> tokens (B, 1 + N, C) after the final LayerNorm, of
    which the first is the class token. Positions are absolute and learned.

    Stochastic depth rises linearly to `drop_path`; `initial_std` is that of the blocks' weights,
    larger for small widths, see `TextTransformer`. `gradient_checkpointing` is for all blocks, or
    for so many of the last ones: they keep no activations, and compute them again.

    With `stem`, arguments of `residual_stem`, a small network makes the patches; it is for little
    data (docs/decisions/017-a-zoo-of-small-models.md). ValueError if it does not fit the patches.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        gradient_checkpointing: bool | int = False,
        initial_std: float = 0.02,
        stem: Mapping[str, Any] | None = None,
        block_fn: type[timm_vit.Block] = timm_vit.Block,
    ):
        patches: dict[str, Any] = {"patch_size": patch_size}
        if stem:
            made = stem["cell"] * 2 ** (len(stem["channels"]) - 1), stem["channels"][-1]
            if made != (patch_size, width):
                fits = f"it makes patches of {made[0]} px and width {made[1]}"
                raise ValueError(f"stem={dict(stem)}: {fits}, not {patch_size} and {width}")
            embed = partial(HybridEmbed, backbone=residual_stem(**stem), proj=False)
            patches = {"patch_size": 1, "embed_layer": embed}
        super().__init__(
            img_size=image_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            block_fn=block_fn,
            **patches,
        )
        self.patch_size = patch_size
        last = depth if gradient_checkpointing is True else int(gradient_checkpointing)
        if not 0 <= last <= depth:
            raise ValueError(f"gradient_checkpointing={last} of {depth} blocks")
        self.checkpointed_blocks = last
        if initial_std != 0.02:  # timm's own
            for layer in self.blocks.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=initial_std)

    def forward_features(self, x: Tensor, *masks: Any, **options: Any) -> Tensor:
        """Images (B, 3, S, S) -> tokens (B, 1 + N, C)."""
        if not self.checkpointed_blocks:
            return super().forward_features(x, *masks, **options)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.norm(self.run_blocks(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        """What the blocks make of tokens (B, ..., C), the last of them by checkpoints."""
        first = len(self.blocks) - self.checkpointed_blocks
        x = self.blocks[:first](x)
        return checkpoint_seq(self.blocks[first:], x) if self.checkpointed_blocks else x

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return math.isqrt(self.patch_embed.num_patches)


def residual_stem(cell: int, channels: Sequence[int]) -> nn.Sequential:
    """(B, 3, S, S) -> (B, channels[-1], P, P) from the oriented gradients of cells, by residual
    blocks of so many channels, each but the first of which halves the side: P = S / cell / 2^k."""
    gradients = OrientedGradients(cell)
    layers: list[nn.Module] = [gradients, nn.BatchNorm2d(gradients.channels)]
    layers.append(nn.Conv2d(gradients.channels, channels[0], 3, padding=1, bias=False))
    for before, after in pairwise([channels[0], *channels]):
        stride = 1 if len(layers) == 3 else 2
        layers.append(PreActivationBlock(before, after, stride, False, momentum=0.1))
    return nn.Sequential(*layers, nn.BatchNorm2d(channels[-1]), nn.ReLU())


def interpolate_positions(
    positions: Tensor, grid: int | tuple[int, int], mode: str = "bicubic"
) -> Tensor:
    """Position embeddings (1, 1 + s^2, C) of a square grid -> (1, 1 + H W, C) of a `grid` of that
    side or (H, W), without antialiasing; the class token's stays (docs/papers/albef.md, section
    4.4)."""
    if positions.ndim != 3:
        raise ValueError(f"position embeddings are (1, 1 + s^2, C), got {tuple(positions.shape)}")
    count, width = positions.shape[1] - 1, positions.shape[2]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} position embeddings form no square grid")
    height_width = (grid, grid) if isinstance(grid, int) else grid
    if height_width == (side, side):
        return positions
    first, patches = positions[:, :1], positions[:, 1:]
    plane = patches.reshape(1, side, side, width).permute(0, 3, 1, 2)
    corners = False if mode == "bicubic" else None
    plane = F.interpolate(plane, height_width, mode=mode, align_corners=corners)
    return torch.cat([first, plane.flatten(2).transpose(1, 2)], dim=1)


@contextmanager
def recorded_block(vit: VisionTransformer, block: int) -> Iterator[list[Tensor]]:
    """Append self-attention probabilities (B, H, 1 + N, 1 + N) of `block` to the list that is
    yielded, pass by pass; they are part of the graph."""
    attention: Any = vit.blocks[block].attn
    maps: list[Tensor] = []
    fused = attention.fused_attn
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    try:
        yield maps
    finally:
        attention.fused_attn = fused
        hook.remove()
