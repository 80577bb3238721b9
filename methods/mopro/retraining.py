"""After pre-training: the classifier alone learns on, from the cleaned list in square-root
class-balanced epochs (docs/papers/mopro.md, sections 3.8, 3.9).

N images, K classes. Source: salesforce/MoPro@155cae3 `DataLoader/dataloader_balance.py`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.data.loading.streams import Draws, Schedule, Stream, StreamBatches, number_repeats
from shared.data.multi_view import ViewsData
from shared.tasks.linear_classification import LinearClassification


class ClassifierRetraining(LinearClassification):
    """Decoupled retraining: frozen backbone in evaluation mode, classifier continued.

    `official.warm_start` fills backbone AND classifier, so `head_std` is null. With `freeze` false,
    an official option, the backbone learns too, at `lr` without any decay.
    """

    def configure_optimizers(self):
        [optimizer], [entry] = super().configure_optimizers()
        factors = [self.factor, lambda epoch: 1.0][: len(optimizer.param_groups)]
        entry["scheduler"] = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return [optimizer], [entry]


class RetrainingData(ViewsData):
    """`ViewsData` whose epochs are square-root class-balanced draws of the training images."""

    def _schedule(self, rank: int, world: int) -> Schedule:
        labels = self.images("train").labels[self.train_indices]
        stream: Any = SquareRootPass(self._h.seed, labels)
        return StreamBatches([stream], [self._h.batch_size], True, rank, world)


def repeat_factors(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) listings of an image of each class, floor(10 sqrt(n_max / n_c)); 0 if it has no image.
    In the official order of operations: a rounding error can put an exact integer one lower."""
    counts = np.bincount(labels)
    inverse = np.zeros(len(counts))
    inverse[counts > 0] = (1 / counts[counts > 0]) ** 0.5
    share = inverse / inverse.sum()
    return np.floor(10 * share / share[counts > 0].min()).astype(np.int64)


class SquareRootPass(Stream):
    """A stream of N draws an epoch, with a class about as frequent as the square root of its size.

    Each image is listed as often as `repeat_factors` of the labels (N,) says, the list is shuffled,
    and its first N entries are the epoch. The order depends on (seed, epoch) only, so that all
    ranks share one list; the official processes take shares of differently shuffled ones.
    """

    def __init__(self, seed: int, labels: NDArray[np.int64]) -> None:
        super().__init__(seed, len(labels), 0)
        self.listed_until = np.cumsum(repeat_factors(labels)[labels])

    def draws(self, epoch: int) -> Draws:
        order = self.shuffle(epoch, int(self.listed_until[-1]))[: len(self)]
        # Place j of the list belongs to the first image that is listed beyond j.
        positions = np.searchsorted(self.listed_until, order, side="right")
        return number_repeats(positions, epoch)

    def shuffle(self, epoch: int, length: int) -> NDArray[np.int64]:
        """A permutation of the whole list (for WebVision some 50 million places, 400 MB)."""
        return np.random.default_rng([self.seed & (2**64 - 1), epoch]).permutation(length)
