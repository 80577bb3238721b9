"""Square-root class-balanced epochs, on which the classifier is retrained (docs/papers/mopro.md,
section 3.9).

N images, K classes. Source: salesforce/MoPro@155cae3 `DataLoader/dataloader_balance.py`.
"""

import numpy as np
from numpy.typing import NDArray

from shared.data.loading.streams import Draws, number_repeats


def repeat_factors(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Listings of an image of each class, floor(10 sqrt(n_max / n_c)): (K,) int64.

    In float64 and in the official order of operations, because a rounding error can put an exact
    integer one lower. A class without images gets 0.
    """
    counts = np.bincount(labels)
    inverse = np.zeros(len(counts))
    inverse[counts > 0] = (1 / counts[counts > 0]) ** 0.5
    share = inverse / inverse.sum()
    return np.floor(10 * share / share[counts > 0].min()).astype(np.int64)


class SquareRootPass:
    """An epoch of N draws in which a class is about as frequent as the square root of its size.

    Each image is listed as often as `repeat_factors` says, the list is shuffled, and its first N
    entries are the epoch. The order depends on (seed, epoch) only, so that all ranks share one
    list; the official processes shuffle by themselves and then take shares of different lists.

    A stream of `shared.data.loading.streams`. `labels` (N,) int64, one per position.
    """

    def __init__(self, seed: int, labels: NDArray[np.int64]) -> None:
        self.seed = seed
        self.listed_until = np.cumsum(repeat_factors(labels)[labels])

    def __len__(self) -> int:
        return len(self.listed_until)

    def draws(self, epoch: int) -> Draws:
        order = self.shuffle(epoch, int(self.listed_until[-1]))[: len(self)]
        # Place j of the list belongs to the first image that is listed beyond j.
        positions = np.searchsorted(self.listed_until, order, side="right")
        return number_repeats(positions, epoch)

    def shuffle(self, epoch: int, length: int) -> NDArray[np.int64]:
        """A permutation of the whole list (for WebVision some 50 million places, 400 MB)."""
        return np.random.default_rng([self.seed & (2**64 - 1), epoch]).permutation(length)
