"""The one interface of the two augmentation back-ends."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.data.images import Pictures


class Views(Protocol):
    """Makes a named view of some images.

    `images` is a uint8 array (N, H, W) or (N, H, W, C) or a list of single images; `keys` (N,) come
    from `shared.data.randomness.sample_keys`. Returns normalised float32 (N, C, H, W). The view
    "test" takes no keys. Row n depends on image n and key n only.
    """

    def __call__(
        self, images: Pictures, view: str, keys: NDArray[np.uint64] | None = None
    ) -> Tensor: ...
