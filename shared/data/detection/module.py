"""Detection sets on disk as the batches of training, calibration, validation and test."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from shared.data.detection.samples import DetectionSamples, Preparation, Resizing
from shared.data.detection.sampling import Share, TrainingImages, training_images
from shared.data.loading.loader import EvaluationLoader, ResumableLoader, rank_and_world
from shared.data.readers.instances import Instances, read_instances
from shared.nn.building import applied, call


class DetectionData(pl.LightningDataModule):
    """Pictures with boxes in COCO's or LVIS's format; every batch is a `DetectionBatch`.

    Args:
        files, image_roots: of each split, its instances file and the folder of its pictures.
        resizing, eval_resizing: the arguments of `Resizing`, the latter with one `short`.
        preparation: the arguments of `Preparation`.
        sampling: the `_target_` of a function of `shared.data.detection.sampling`, and its
            arguments but the first two.
        flip: probability that a training image is mirrored.
        batch_size: total over all ranks; `eval_batch_size` is that of one.
        smallest_side: px, below which an image is not learnt from.
        val_split, test_split: splits of `files`.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        image_roots: Mapping[str, str],
        resizing: Mapping[str, Any],
        eval_resizing: Mapping[str, Any],
        preparation: Mapping[str, Any],
        sampling: Mapping[str, Any],
        flip: float,
        batch_size: int,
        eval_batch_size: int,
        smallest_side: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_split: str = "val",
        test_split: str = "test",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._h: Any = self.hparams
        self.resizing, self.eval_resizing = (
            applied(Resizing, given) for given in (resizing, eval_resizing)
        )
        self.preparation = applied(Preparation, preparation)
        self._instances: dict[str, Instances] = {}
        self._training: TrainingImages | None = None

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that a bad file is refused before it starts."""
        if stage == "fit":
            _ = self.training
        self.instances(self._h.test_split if stage == "test" else self._h.val_split)

    def instances(self, split: str) -> Instances:
        """Return the annotations of a split, read once."""
        if split not in self._instances:
            if split not in self._h.files or split not in self._h.image_roots:
                raise ValueError(f"data.files and data.image_roots have no split {split!r}")
            where = self._h.files[split], self._h.image_roots[split]
            self._instances[split] = read_instances(*where, masks=self.preparation.masks)
        return self._instances[split]

    @property
    def training(self) -> TrainingImages:
        """The images that are learnt from."""
        if self._training is None:
            self._training = training_images(self.instances("train"), self._h.smallest_side)
        return self._training

    @property
    def class_names(self) -> tuple[str, ...]:
        """Kept in every checkpoint, for predictions; label 1 is the first."""
        return self.instances("train").class_names

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """(K,) ids of the classes in the files, kept likewise."""
        return self.instances("train").category_ids

    @property
    def instance_counts(self) -> NDArray[np.int64]:
        """(K,) training annotations of each class."""
        return self.instances("train").instance_counts

    def train_dataloader(self) -> ResumableLoader:
        h, (rank, world) = self._h, rank_and_world(self)
        share = Share(h.batch_size, h.seed, rank, world)
        schedule = call(h.sampling, images=self.training, share=share)
        given = self.resizing, self.preparation, h.flip, h.seed
        samples = DetectionSamples(self.instances("train"), self.training.members, *given)
        return ResumableLoader(samples, schedule, h.num_workers)

    def val_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.val_split)

    def test_dataloader(self) -> EvaluationLoader:
        return self._evaluation(self._h.test_split)

    def _evaluation(self, split: str) -> EvaluationLoader:
        instances = self.instances(split)
        everything = np.arange(len(instances))
        samples = DetectionSamples(instances, everything, self.eval_resizing, self.preparation)
        size, workers, ranks = self._h.eval_batch_size, self._h.num_workers, rank_and_world(self)
        return EvaluationLoader(samples, len(samples), size, workers, *ranks)
