"""Data sets that make a whole batch at once, for the loaders of `shared.data.loading.loader`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.data.errors import DataCorruptError
from shared.data.images import ImageSet
from shared.data.loading.streams import Draws
from shared.data.views.interface import Views
from shared.randomness import sample_keys


class DrawnImages:
    """Augmented views of the images that a stream draws from `members` (sorted data set indices).

    A view's name chooses its random numbers, so that an image drawn twice is augmented in two ways.
    """

    def __init__(
        self, images: ImageSet, members: NDArray[np.int64], transform: Views, seed: int
    ) -> None:
        self.images, self.members, self.transform, self.seed = images, members, transform, seed

    def load(self, draws: Draws, recipes: Mapping[str, str]) -> tuple[list[Tensor], Tensor, Tensor]:
        """One (B, C, H, W) float32 tensor per view -> recipe, `labels` (B, ...), `indices` (B,)."""
        pixels, indices = self.images.take(self.members[draws.positions], self.members)
        views = []
        for view, recipe in recipes.items():
            keys = sample_keys(self.seed, draws.passes, indices, view)
            views.append(self.transform(pixels, recipe, keys))
        return views, torch.from_numpy(self.images.labels[indices]), torch.from_numpy(indices)


class PlainImageBatches:
    """Un-augmented `images`, `labels`, `indices` of positions in `members`, by default in all."""

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


class DrawnBatches:
    """Training batches from plans of one or several streams.

    Each part has a stream's images, the recipe of each view by the view's name, and the names of
    labels and indices in the batch. Streams beyond the parts are left out, and parts beyond the
    streams. Views draw by their names, so that an image paired with itself is augmented twice.
    """

    def __init__(self, *parts: tuple[DrawnImages, Mapping[str, str], str, str]) -> None:
        self.parts = parts

    def __getitems__(self, plan: tuple[Draws, ...]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for draws, (images, recipes, labels, indices) in zip(plan, self.parts, strict=False):
            views, batch[labels], batch[indices] = images.load(draws, recipes)
            batch |= dict(zip(recipes, views, strict=True))
        return batch
