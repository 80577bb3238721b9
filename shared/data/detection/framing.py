"""How a picture that is no part of a set becomes a detector's input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.data.detection.samples import Preparation, Resizing, as_input, padded
from shared.data.images import Pixels
from shared.nn.building import applied

LARGEST = 4096  # px, of a side
AT_ONCE = 1 << 22  # pixels of a batch


@dataclass(frozen=True)
class Framing:
    """Resizing and normalisation of the evaluation that a detector was trained for."""

    resizing: Resizing
    preparation: Preparation

    def at_once(self, batch_size: int) -> int:
        """How many pictures a batch has, at most `batch_size`."""
        return max(1, min(batch_size, AT_ONCE // (max(self.resizing.short) * self.resizing.long)))

    def batch(self, pictures: Sequence[Pixels]) -> dict[str, Tensor]:
        """`images` (B, 3, H, W) with `sizes` and `original_sizes` (B, 2), height and width."""
        before = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        sizes = [self.resizing.size(height, width, draw=0.0) for height, width in before]
        inputs = [
            as_input(picture, size, self.preparation)
            for picture, size in zip(pictures, sizes, strict=True)
        ]
        return {
            "images": padded(inputs, self.preparation.size_divisor),
            "sizes": torch.tensor(sizes),
            "original_sizes": torch.tensor(before),
        }


def framing(data: Mapping[str, Any]) -> Framing:
    """The framing that a data module's hyperparameters describe; ValueError, which says what is
    wrong, of others, and of sizes that would fill the memory."""
    given: dict[str, Any] = {key: data.get(key) for key in ("eval_resizing", "preparation")}
    for key, value in given.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"no {key} is recorded")
    resizing, preparation = given.values()
    made = Framing(applied(Resizing, resizing), applied(Preparation, preparation))
    sides = [*made.resizing.short, made.resizing.long, made.preparation.size_divisor]
    if not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
        raise ValueError(f"sides of {str(sides)[:80]} are not from 1 to {LARGEST} pixels")
    probe = as_input(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(), (8, 8), made.preparation)
    if probe.shape != (3, 8, 8) or not torch.isfinite(probe).all():
        raise ValueError("it makes values that are not finite")
    return made
