"""Semi-supervised batches: a few labelled images beside mu times as many unlabelled ones.

Used by CoMatch and by its baselines. The same (seed, split_seed) gives every arm the same labelled
images, the same batches and the same weak and strong0 views, whichever views it asks for.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from shared.data.image_module import ImageDataModule
from shared.data.images import ImageSet
from shared.data.loading.loader import ResumableLoader
from shared.data.loading.samplers import BatchPlan, FixedSteps, OnePass, Schedule
from shared.data.splits import Split, per_class_split
from shared.data.views.interface import Views
from shared.nn.building import call
from shared.randomness import sample_keys


class SemiSupervisedData(ImageDataModule):
    """Batches for semi-supervised training, and what `ImageDataModule` gives.

    Training batch, with B = batch_size and M = mu * B, per rank divided by the world size:
    `labelled` (B, C, H, W) float32, `labels` (B,) int64, one (M, C, H, W) per name in `views`,
    `hidden_labels` (M,) (diagnostics only; -1 unknown), `labelled_indices` (B,) and
    `unlabelled_indices` (M,).

    Args:
        num_labels: labelled images in total. split_seed: seed of their choice.
        split: `_target_` of another rule than `per_class_split`, and its further arguments.
        steps_per_epoch: batches per epoch; None makes an epoch one pass of the unlabelled set.
        views: views of the unlabelled images; empty for supervised training.
        labelled_repeat: times each labelled image is listed per pass, for one-pass epochs.
        base: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        num_labels: int,
        batch_size: int,
        mu: int,
        split_seed: int = 0,
        split: Mapping[str, Any] | None = None,
        steps_per_epoch: int | None = None,
        views: Sequence[str] = ("weak", "strong0", "strong1"),
        labelled_repeat: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)

    @cached_property
    def train_split(self) -> Split:
        """Data set indices of the labelled and the unlabelled training images."""
        h, images = self._h, self.images("train")
        if h.split is None:
            return per_class_split(images, self.train_indices, h.num_labels, h.split_seed)
        given = {"images": images, "candidates": self.train_indices}
        return call(h.split, **given, num_labels=h.num_labels, seed=h.split_seed)

    def setup(self, stage: str) -> None:
        """Read the data and check sizes, so that bad input is refused before training starts."""
        if stage == "fit":
            self._schedule(*self._rank_and_world())

    def train_dataloader(self) -> ResumableLoader:
        h = self._h
        dataset = SemiSupervisedBatches(
            self.images("train"), self.train_split, self.transform, h.views, h.seed
        )
        return ResumableLoader(dataset, self._schedule(*self._rank_and_world()), h.num_workers)

    def _schedule(self, rank: int, world: int) -> Schedule:
        h = self._h
        sizes = (len(self.train_split.labelled), len(self.train_split.unlabelled))
        batch_sizes = (h.batch_size, h.batch_size * h.mu)
        if h.steps_per_epoch is None:
            return OnePass(h.seed, sizes, batch_sizes, h.labelled_repeat, rank, world)
        return FixedSteps(h.seed, sizes, batch_sizes, h.steps_per_epoch, rank, world)


class SemiSupervisedBatches:
    """Makes one training batch from a plan; indexable by `BatchPlan` for torch's DataLoader."""

    def __init__(
        self, images: ImageSet, split: Split, transform: Views, views: Sequence[str], seed: int
    ) -> None:
        self.images, self.split, self.transform = images, split, transform
        self.views, self.seed = tuple(views), seed

    def __getitems__(self, plan: BatchPlan) -> dict[str, Tensor]:
        # "labelled" is a stream of draws of its own; the recipe is the weak one.
        pixels, indices = self.images.take(
            self.split.labelled[plan.labelled.positions], self.split.labelled
        )
        keys = sample_keys(self.seed, plan.labelled.passes, indices, "labelled")
        batch = {
            "labelled": self.transform(pixels, "weak", keys),
            "labels": torch.from_numpy(self.images.labels[indices]),
            "labelled_indices": torch.from_numpy(indices),
        }
        if not self.views:
            return batch
        pixels, indices = self.images.take(
            self.split.unlabelled[plan.unlabelled.positions], self.split.unlabelled
        )
        for view in self.views:
            keys = sample_keys(self.seed, plan.unlabelled.passes, indices, view)
            batch[view] = self.transform(pixels, view, keys)
        batch["hidden_labels"] = torch.from_numpy(self.images.labels[indices])
        batch["unlabelled_indices"] = torch.from_numpy(indices)
        return batch
