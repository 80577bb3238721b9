"""What all image data modules have in common: the data set, its splits, evaluation."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from shared.data.images import ImageSet
from shared.data.loading.batches import PlainImageBatches
from shared.data.loading.loader import EvaluationLoader, rank_and_world
from shared.data.splits import seeded_subset
from shared.data.views.interface import build_views
from shared.nn.building import call


class ImageDataModule(pl.LightningDataModule):
    """Evaluation and feature batches; subclasses add `train_dataloader`.

    Evaluation batch: `images` (B, C, H, W) float32, `labels` (B,) int64 (multi-label sets: (B, K)),
    `indices` (B,) int64, the images' places in their split.

    `dataset` and `augmentation` are the `_target_` of a reader and of views, with their arguments
    but `split`. `subset`: train on that many images, drawn with `subset_seed`. `eval_batch_size` is
    that of one rank; `val_split` the reader's: some official code validates on the test set.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        augmentation: Mapping[str, Any],
        subset: int | None = None,
        subset_seed: int = 0,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        val_split: str = "test",
        test_split: str = "test",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # those of a subclass as well
        self._h: Any = self.hparams
        self.transform = build_views(augmentation)
        self._sets: dict[str, ImageSet] = {}

    @cached_property
    def train_indices(self) -> NDArray[np.int64]:
        """Sorted data set indices of the training images, after `subset`."""
        return seeded_subset(len(self.images("train")), self._h.subset, self._h.subset_seed)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Kept in every checkpoint, for predictions."""
        return self.images("train").class_names

    def images(self, split: str) -> ImageSet:
        """Return a split of the data set, read once."""
        if split not in self._sets:
            self._sets[split] = call(self._h.dataset, split=split)
        return self._sets[split]

    def val_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.val_split)

    def test_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.test_split)

    def features_dataloader(self) -> EvaluationLoader:
        """Evaluation batches of the training images, each once, by rising index."""
        batches = PlainImageBatches(self.images("train"), self.transform, self.train_indices)
        return self._loader(batches)

    def _evaluation(self, split: str) -> EvaluationLoader:
        return self._loader(PlainImageBatches(self.images(split), self.transform))

    def _loader(self, dataset: PlainImageBatches) -> EvaluationLoader:
        h, ranks = self._h, rank_and_world(self)
        return EvaluationLoader(dataset, len(dataset), h.eval_batch_size, h.num_workers, *ranks)
