"""The one interface of the augmentation back-ends, and the closed set of its classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.data.images import Pictures
from shared.nn.building import build


class Views(ABC):
    """Makes a named view of some images.

    `images` is a uint8 array (N, H, W) or (N, H, W, C) or a list of single images; `keys` (N,) come
    from `shared.randomness.sample_keys`. Returns normalised float32 (N, C, H, W). The view
    "test" takes no keys. Row n depends on image n and key n only.

    A checkpoint names its views and says their arguments: a subclass must not hand them on to
    anything that opens, calls or imports what they name.
    """

    size: int  # side of a view in pixels

    @abstractmethod
    def __call__(
        self, images: Pictures, view: str, keys: NDArray[np.uint64] | None = None
    ) -> Tensor: ...


def build_views(config: Mapping[str, Any]) -> Views:
    """Build the views that `{"_target_": "shared.data....", **arguments}` describes.

    Raises:
        ValueError, TypeError: no class of views, or arguments that do not fit it.
    """
    return build(config, Views)  # type: ignore[type-abstract]
