"""First-in-first-out memory of features and what belongs to them."""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """`features` (K, d) with any payload rows (class probabilities, labels, ids) beside them.

    All start as zeros and are buffers, so that a checkpoint restores them with `pointer`, the next
    row to write, and `written`, the number of rows ever offered.
    `payloads` name the trailing size of each, e.g. {"probs": num_classes}; those in `integers` are
    kept as int64, for ids: float32 tells integers apart only up to 2^24. A write that passes the
    end continues at row 0 ("wrap"), or its surplus is discarded and the pointer returns to 0
    ("drop", as in CoMatch's ImageNet code).
    """

    features: Tensor
    pointer: Tensor
    written: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        payloads: dict[str, int] | None = None,
        overflow: Literal["wrap", "drop"] = "wrap",
        integers: Collection[str] = (),
    ):
        super().__init__()
        if overflow not in ("wrap", "drop"):
            raise ValueError(f'overflow must be "wrap" or "drop", got {overflow!r}')
        self.overflow = overflow
        self.payload_names = tuple(payloads or ())
        self.register_buffer("features", torch.zeros(size, dim))
        for name, width in (payloads or {}).items():
            kind = torch.long if name in integers else None
            self.register_buffer(name, torch.zeros(size, width, dtype=kind))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, payload: str) -> Tensor:
        """(K, size) rows of a payload."""
        return self.get_buffer(payload)

    @torch.no_grad()
    def enqueue(self, features: Tensor, **payloads: Tensor) -> None:
        """Write at most K rows at the pointer. In a distributed run gather before calling."""
        if set(payloads) != set(self.payload_names):
            raise ValueError(
                f"queue takes payloads {sorted(self.payload_names)}, got {sorted(payloads)}"
            )
        for name, values in payloads.items():
            if values.is_floating_point() and not self[name].is_floating_point():
                raise ValueError(
                    f"{name} are integers, got {values.dtype}, which may have cut them"
                )
        rows, size = len(features), len(self)
        if rows > size:
            raise ValueError(f"a batch of {rows} rows does not fit a queue of {size}")
        self.written += rows
        start = int(self.pointer)
        if self.overflow == "drop":
            rows = min(rows, size - start)
        slots = (start + torch.arange(rows, device=self.features.device)) % size
        self.features[slots] = features[:rows].to(self.features.dtype)
        for name, values in payloads.items():
            self[name][slots] = values[:rows].to(self[name].dtype)
        self.pointer.fill_((start + rows) % size)
