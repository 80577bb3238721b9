"""After pre-training: the classifier alone learns on, from the cleaned list (docs/papers/mopro.md,
sections 3.8, 3.9)."""

from typing import Any

import torch

from methods.mopro.resampling import SquareRootPass
from shared.data.loading.streams import Schedule, StreamBatches
from shared.data.multi_view import ViewsData
from shared.tasks.linear_classification import LinearClassification


class ClassifierRetraining(LinearClassification):
    """Decoupled retraining: frozen backbone in evaluation mode, classifier continued.

    `official.warm_start` fills backbone AND classifier from the pre-training (the official code
    draws the classifier from N(0, 0.01), then overwrites it), so `head_std` is null.

    Args:
        freeze: false is the official option to fine-tune the backbone as well, at `lr` without any
            decay; only the classifier's rate follows the schedule there.
        rest: see `LinearClassification`.
    """

    def configure_optimizers(self):
        [optimizer], [entry] = super().configure_optimizers()
        factors = [self.factor, _never_decayed][: len(optimizer.param_groups)]
        entry["scheduler"] = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return [optimizer], [entry]


class RetrainingData(ViewsData):
    """`ViewsData` whose epochs are square-root class-balanced draws of the training images."""

    def _schedule(self, rank: int, world: int) -> Schedule:
        labels = self.images("train").labels[self.train_indices]
        stream: Any = SquareRootPass(self._h.seed, labels)
        return StreamBatches([stream], [self._h.batch_size], True, rank, world)


def _never_decayed(epoch: int) -> float:
    return 1.0
