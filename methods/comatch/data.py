"""Semi-supervised batches: a few labelled images beside mu times as many unlabelled ones.

Used by CoMatch and by its baselines. The same (seed, split_seed) gives every arm the same labelled
images, the same batches and the same weak and strong0 views, whichever views it asks for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor

from shared.data.images import DataCorruptError, DataNotFoundError, FolderImages, ImageSet
from shared.data.loader import EvaluationLoader, ResumableLoader
from shared.data.randomness import sample_keys
from shared.data.samplers import BatchPlan, FixedSteps, OnePass, Schedule
from shared.data.splits import Split, per_class_split, seeded_subset
from shared.data.views import Views

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class SemiSupervisedData(pl.LightningDataModule):
    """Batches for semi-supervised training, evaluation and prediction.

    Training batch, with B = batch_size and M = mu * B, per rank divided by the world size:
    `labelled` (B, C, H, W) float32, `labels` (B,) int64, one (M, C, H, W) per name in `views`,
    `hidden_labels` (M,) (diagnostics only; -1 unknown), `labelled_indices` (B,) and
    `unlabelled_indices` (M,). Evaluation batch: `images`, `labels`, `indices`. Prediction batch:
    `images`, `paths`.

    Args:
        dataset: `_target_` of a reader in `shared.data` and its arguments but `split`.
        augmentation: `_target_` of the views (`shared.data.transforms` per image,
            `shared.data.tensor_transforms` per batch) and their arguments.
        num_labels: labelled images in total. split_seed: seed of their choice.
        split: `_target_` of another rule than `per_class_split`, and its further arguments.
        subset: train on that many images, drawn with `subset_seed`; None for all.
        steps_per_epoch: batches per epoch; None makes an epoch one pass of the unlabelled set.
        views: views of the unlabelled images; empty for supervised training.
        labelled_repeat: times each labelled image is listed per pass, for one-pass epochs.
        seed: of sampling and augmentation.
        val_split, test_split: the reader's split for validation (the official code validates on the
            test set) and for the final figure.
        predict_root: folder (or image) for `predict_dataloader`.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        augmentation: Mapping[str, Any],
        num_labels: int,
        batch_size: int,
        mu: int,
        split_seed: int = 0,
        split: Mapping[str, Any] | None = None,
        subset: int | None = None,
        subset_seed: int = 0,
        steps_per_epoch: int | None = None,
        views: Sequence[str] = ("weak", "strong0", "strong1"),
        labelled_repeat: int = 1,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        val_split: str = "test",
        test_split: str = "test",
        predict_root: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._h: Any = self.hparams
        self.transform: Views = instantiate(augmentation)
        self._sets: dict[str, ImageSet] = {}
        self._split: Split | None = None

    @property
    def train_split(self) -> Split:
        """Data set indices of the labelled and the unlabelled training images."""
        if self._split is None:
            images = self.images("train")
            h = self._h
            candidates = seeded_subset(images, h.subset, h.subset_seed)
            if h.split is None:
                self._split = per_class_split(images, candidates, h.num_labels, h.split_seed)
            else:
                rule = instantiate(h.split, _partial_=True)
                self._split = rule(images, candidates, num_labels=h.num_labels, seed=h.split_seed)
        return self._split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Kept in every checkpoint, for predictions."""
        return self.images("train").class_names

    def images(self, split: str) -> ImageSet:
        """Return a split of the data set, read once."""
        if split not in self._sets:
            # Called outside of `instantiate`, which would wrap an error in one of its own.
            reader = instantiate(self._h.dataset, _partial_=True)
            self._sets[split] = reader(split=split)
        return self._sets[split]

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

    def val_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.val_split)

    def test_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.test_split)

    def predict_dataloader(self) -> EvaluationLoader:
        """Batches of the images below `predict_root`, sorted by path.

        Raises:
            FileNotFoundError: no such folder, or no image in it.
        """
        if self._h.predict_root is None:
            raise ValueError("predict_root is not set: name a folder of images")
        return self._loader(PredictionBatches(Path(self._h.predict_root), self.transform))

    def _evaluation(self, split: str) -> EvaluationLoader:
        return self._loader(EvaluationBatches(self.images(split), self.transform))

    def _loader(self, dataset: "EvaluationBatches") -> EvaluationLoader:
        h = self._h
        rank, world = self._rank_and_world()
        return EvaluationLoader(
            dataset, len(dataset), h.eval_batch_size, h.num_workers, rank, world
        )

    def _schedule(self, rank: int, world: int) -> Schedule:
        h = self._h
        sizes = (len(self.train_split.labelled), len(self.train_split.unlabelled))
        batch_sizes = (h.batch_size, h.batch_size * h.mu)
        if h.steps_per_epoch is None:
            return OnePass(h.seed, sizes, batch_sizes, h.labelled_repeat, rank, world)
        return FixedSteps(h.seed, sizes, batch_sizes, h.steps_per_epoch, rank, world)

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


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


class EvaluationBatches:
    """Makes evaluation batches from index arrays."""

    def __init__(self, images: ImageSet, transform: Views) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        pixels, used = self.images.take(indices)
        if len(used) == 0:
            raise DataCorruptError(f"none of the {len(indices)} images of a batch can be read")
        return {
            "images": self.transform(pixels, "test"),
            "labels": torch.from_numpy(self.images.labels[used]),
            "indices": torch.from_numpy(used),
        }


class PredictionBatches(EvaluationBatches):
    """Images of a folder without labels; unreadable ones are left out with a warning."""

    def __init__(self, root: Path, transform: Views) -> None:
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        if not paths:
            raise DataNotFoundError(
                f"{root}: no image ({', '.join(sorted(IMAGE_SUFFIXES))}) found there"
            )
        self.paths = paths
        unknown = np.full(len(paths), -1)
        super().__init__(FolderImages(paths, unknown, [], str(root), max_corrupt=0.5), transform)

    def __getitems__(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        batch = super().__getitems__(indices)
        paths = [str(self.paths[i]) for i in batch["indices"]]
        return {"images": batch["images"], "paths": paths}
