"""The one interface of the augmentation back-ends, and the closed set of its classes."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from shared.data.images import Pictures, Pixels
from shared.nn.building import build
from shared.randomness import key_generator

Keys = NDArray[np.uint64]


class Views(ABC):
    """Makes a named view of some images.

    `images` is a uint8 array (N, H, W) or (N, H, W, C) or a list of single images; `keys` (N,) come
    from `shared.randomness.sample_keys`. Returns normalised float32 (N, C, H, W). The view
    "test" takes no keys. Row n depends on image n and key n only.

    A checkpoint names its views and says their arguments: a subclass must not hand them on to
    anything that opens, calls or imports what they name. `mean` and `std` are per channel, for
    values in 0..1, `size` the side of a view in pixels.
    """

    recipes: Collection[str]  # names of the views besides "test"

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int) -> None:
        self.mean, self.std, self.size = tuple(mean), tuple(std), size

    def __call__(self, images: Pictures, view: str, keys: Keys | None = None) -> Tensor:
        if view != "test" and (view not in self.recipes or keys is None):
            known = ", ".join([*self.recipes, "test"])
            raise ValueError(f"no recipe (or no random keys) for view {view!r}; views: {known}")
        values = self._values(images, view, None if view == "test" else keys)
        return normalise(values, self.mean, self.std)

    @abstractmethod
    def _values(self, images: Pictures, view: str, keys: Keys | None) -> Tensor:
        """(N, C, H, W) float32 in 0..1; `keys` is None for the view "test"."""


class PictureViews(Views):
    """Views of each picture by itself, with a numpy generator of its own."""

    def _values(self, images: Pictures, view: str, keys: Keys | None) -> Tensor:
        if keys is None:
            return planes(np.stack([self._test(image) for image in images]))
        pairs = zip(images, keys, strict=True)
        return planes(np.stack([self._one(i, view, key_generator(key)) for i, key in pairs]))

    @abstractmethod
    def _test(self, image: Pixels) -> Pixels: ...

    @abstractmethod
    def _one(self, image: Pixels, view: str, generator: Generator) -> Pixels: ...


def planes(images: Pixels) -> Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W) float32 in 0..1."""
    batch = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(batch)).float().div_(255)


def normalise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(values - mean) / std of (N, C, H, W), in place."""
    shift, scale = (torch.tensor(tuple(v)).view(1, -1, 1, 1) for v in (mean, std))
    return values.sub_(shift).div_(scale)


def build_views(config: Mapping[str, Any]) -> Views:
    """Build what `{"_target_": "shared.data....", **arguments}` names, if that are views."""
    return build(config, Views)  # type: ignore[type-abstract]
