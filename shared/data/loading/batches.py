"""Data sets that make a whole batch at once, for the loaders of `shared.data.loading.loader`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.data.errors import DataCorruptError
from shared.data.images import ImageSet
from shared.randomness import sample_keys
from shared.data.loading.samplers import Draws
from shared.data.views.interface import Views


class ViewBatches:
    """Training batches from plans of one stream over `members` (sorted data set indices).

    A batch has one (B, C, H, W) float32 tensor per name in `views`, `labels` (B, ...) and `indices`
    (B,) int64, the images' places in the data set.
    """

    def __init__(
        self,
        images: ImageSet,
        members: NDArray[np.int64],
        transform: Views,
        views: Sequence[str],
        seed: int,
    ) -> None:
        self.images, self.members, self.transform = images, members, transform
        self.views, self.seed = tuple(views), seed

    def __getitems__(self, plan: tuple[Draws]) -> dict[str, Tensor]:
        (draws,) = plan
        pixels, indices = self.images.take(self.members[draws.positions], self.members)
        batch = {}
        for view in self.views:
            keys = sample_keys(self.seed, draws.passes, indices, view)
            batch[view] = self.transform(pixels, view, keys)
        batch["labels"] = torch.from_numpy(self.images.labels[indices])
        batch["indices"] = torch.from_numpy(indices)
        return batch


class EvaluationBatches:
    """Evaluation batches (`images`, `labels`, `indices`) from positions within `members`.

    `members` None means the whole set. Unreadable images are left out.
    """

    def __init__(
        self, images: ImageSet, transform: Views, members: NDArray[np.int64] | None = None
    ) -> None:
        self.images, self.transform = images, transform
        self.members = np.arange(len(images)) if members is None else members

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, positions: NDArray[np.int64]) -> dict[str, Any]:
        pixels, used = self.images.take(self.members[positions])
        if len(used) == 0:
            raise DataCorruptError(f"none of the {len(positions)} images of a batch can be read")
        return {
            "images": self.transform(pixels, "test"),
            "labels": torch.from_numpy(self.images.labels[used]),
            "indices": torch.from_numpy(used),
        }
