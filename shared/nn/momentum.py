"""The slowly moving copy of a network: mean teacher, MoCo's key encoder, evaluation EMA."""

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A no-grad copy theta_m of `encoder`, updated as theta_m <- m theta_m + (1 - m) theta.

    Of BatchNorm statistics an update takes the encoder's ("copy": an EMA model that never runs in
    train mode) or leaves them to the copy's own train-mode passes ("keep": MoCo).
    """

    def __init__(self, encoder: nn.Module, buffers: Literal["copy", "keep"]):
        super().__init__()
        if buffers not in ("copy", "keep"):
            raise ValueError(f'buffers must be "copy" or "keep", got {buffers!r}')
        self.module = deepcopy(encoder).requires_grad_(False)
        self.buffer_rule = buffers

    @torch.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """One fused update of all parameters; `momentum` m in [0, 1]."""
        own: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(own, list(encoder.parameters()), 1.0 - momentum)
        if self.buffer_rule == "copy":
            for mine, theirs in zip(self.module.buffers(), encoder.buffers(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def forward(self, x: Tensor):
        return self.module(x)
