"""Dropout whose masks cost less on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`; on a CPU, where torch draws number by number, each element takes 16 random bits:
    p is round(2^16 p) / 2^16, at most 1 - 2^-16 (docs/decisions/009)."""
    if not (training and 0.0 < p < 1.0 and x.device.type == "cpu"):
        return F.dropout(x, p, training)
    zeroed = min(round(p * 2**16), 2**16 - 1)  # of 2^16 numbers
    kept = _uniform16(x.numel()) >= zeroed - 2**15
    return x * kept.view(x.shape).to(x.dtype).div_(1.0 - p)


def _uniform16(count: int) -> Tensor:
    """(count,) int16, uniform over all of them, four of each 64 bits of torch's generator."""
    words = torch.empty(-(-count // 4), dtype=torch.int64)
    return words.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[:count]
