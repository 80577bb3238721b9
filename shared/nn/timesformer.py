"""TimeSformer with divided attention: each block looks along time first, then over the frame.

Shapes: B clips of T frames, N patches of a frame, C width. The class token is one of the whole
clip, but stands in each frame's row; the copies stay equal, since they move by their mean.
Keys are the official ones. Source: docs/papers/alpro.md, section 4.1; salesforce/ALPRO@4ff6163
`src/modeling/timesformer/vit.py`.
"""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shared.nn.vision_transformer import VisionTransformer, interpolate_positions


class DividedBlock(Block):
    """A ViT's block that first lets each patch attend to its own place in all frames. What it finds
    there passes `temporal_fc`, which starts at zero: a new block is the ViT's, frame by frame."""

    attn: Any
    temporal_attn: Any

    def __init__(self, dim: int, num_heads: int, norm_layer: Any, **more: Any):
        super().__init__(dim, num_heads, norm_layer=norm_layer, **more)
        self.temporal_norm1 = norm_layer(dim)
        self.temporal_attn = type(self.attn)(dim, num_heads, qkv_bias=True)
        self.temporal_fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, 1 + N, C) -> (B, T, 1 + N, C)."""
        x = self.along_time(x)
        seen = self.drop_path1(self.attn(self.norm1(x.flatten(0, 1)))).view_as(x)
        whole = seen[:, :, :1].mean(dim=1, keepdim=True).expand(-1, x.shape[1], -1, -1)
        x = x + torch.cat([whole, seen[:, :, 1:]], dim=2)
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def class_token(self, x: Tensor) -> Tensor:
        """(B, T, 1 + N, C) -> (B, C), the class token alone, where no block follows, in evaluation.
        The patches are keys and values, and go no further."""
        x = self.along_time(x)
        normed, width = self.norm1(x.flatten(0, 1)), x.shape[-1]
        weight, bias = self.attn.qkv.weight, self.attn.qkv.bias
        query = F.linear(normed[:, :1], weight[:width], bias[:width])
        read = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        heads = (y.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2) for y in (query, *read))
        seen = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1)
        x = x[:, 0, 0] + self.attn.proj(seen).unflatten(0, x.shape[:2]).mean(dim=1)
        return x + self.mlp(self.norm2(x))

    def along_time(self, x: Tensor) -> Tensor:
        """(B, T, 1 + N, C) -> the same after attention over time."""
        # In bf16 on a CPU fused attention trains slower than its parts (docs/decisions/
        # 009-where-the-time-of-a-step-goes.md).
        half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        fused = not (half and torch.is_grad_enabled())
        self.attn.fused_attn = self.temporal_attn.fused_attn = fused
        patches = x[:, :, 1:]
        places = patches.transpose(1, 2).flatten(0, 1)
        moved = self.drop_path1(self.through_time(self.temporal_norm1(places)))
        moved = (moved + self.temporal_fc.bias).unflatten(0, (len(x), -1)).transpose(1, 2)
        return torch.cat([x[:, :, :1], patches + moved], dim=2)

    def through_time(self, places: Tensor) -> Tensor:
        """Temporal attention, and `temporal_fc` without its bias, (B N, T, C) -> (B N, T, C). Both
        end in a linear layer: one product of weights is less work than one of all tokens more."""
        last, outer = self.temporal_attn.proj, self.temporal_fc.weight
        with torch.autocast(places.device.type, enabled=False):
            weights = {"proj.weight": outer @ last.weight, "proj.bias": outer @ last.bias}
        return functional_call(self.temporal_attn, weights, (places,))


class TimeSformer(VisionTransformer):
    """Clips (B, T, 3, S, S) -> tokens (B, 1 + N, C): the class token, and each patch averaged over
    time. It has embeddings of `frames` times; clips of other lengths, and frames of other sizes,
    take the nearest ones. Further arguments are those of `VisionTransformer`."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, frames: int = 4, **vision: Any):
        super().__init__(**vision, block_fn=DividedBlock)
        if frames < 1:
            raise ValueError(f"frames={frames}: a clip has one at least")
        self.time_embed = nn.Parameter(torch.zeros(1, frames, self.embed_dim))
        self.patch_embed.strict_img_size = False
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        blocks: Any = self.blocks
        for block in blocks:
            nn.init.zeros_(block.temporal_fc.weight)
            nn.init.zeros_(block.temporal_fc.bias)

    def forward(self, clips: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_features(clips).mean(dim=1)

    def forward_features(self, x: Tensor, *masks: Any, **options: Any) -> Tensor:
        """Clips (B, T, 3, S, S) -> tokens (B, T, 1 + N, C) of each frame."""
        return self.norm(self.run_blocks(self.embed(x)))

    def class_token(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, S, S) -> (B, C), the first of their tokens, for evaluation."""
        *blocks, last = self.blocks
        x = self.embed(clips)
        for block in blocks:
            x = block(x)
        return self.norm(last.class_token(x))  # type: ignore[operator]

    def embed(self, clips: Tensor) -> Tensor:
        """Patches with positions in space and time, what the first block takes."""
        batch, frames, _, height, width = clips.shape
        patches = self.patch_embed(clips.flatten(0, 1))
        grid = height // self.patch_size, width // self.patch_size
        positions = interpolate_positions(self.pos_embed, grid, "nearest")
        times = nearest_frames(self.time_embed, frames)
        x = (patches + positions[:, 1:]).unflatten(0, (batch, frames)) + times[:, :, None]
        first = (self.cls_token + positions[:, :1]).expand(batch, frames, -1, -1)
        return torch.cat([first, x], dim=2)


def nearest_frames(embeddings: Tensor, count: int) -> Tensor:
    """Embeddings (1, T, C) -> (1, count, C): the j-th is that of floor(j T / count)."""
    if embeddings.shape[1] == count:
        return embeddings
    return F.interpolate(embeddings.mT, size=count, mode="nearest").mT
