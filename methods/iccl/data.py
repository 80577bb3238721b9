"""Two streams of one long-tailed training set: class-agnostic images and class-aware partners.

Every arm of a comparison reads the same set through the same samplers (docs/papers/iccl.md, section
3.2): `iccl` pairs an agnostic with an aware stream, ordinary mixing two agnostic ones, plain
cross-entropy reads one.
"""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.data.image_module import ImageDataModule
from shared.data.loading import streams
from shared.data.loading.batches import DrawnBatches, DrawnImages
from shared.data.loading.loader import EvaluationLoader, ResumableLoader, rank_and_world
from shared.data.readers.long_tail import class_aware_weights

log = logging.getLogger(__name__)
SAMPLERS = ("agnostic", "aware", "progressive", "cycles")
PARTNER_STREAM = 3  # its random numbers are not those of the first stream


class LongTailData(ImageDataModule):
    """Training batches of a long-tailed set, and what `ImageDataModule` gives.

    Training batch, with B = batch_size per rank divided by the world size: `images` (B, C, H, W)
    float32, `labels` and `indices` (B,) int64 of the first stream; and, if there is a second one,
    `partners`, `partner_labels` and `partner_indices`. Every draw of an image is augmented anew.

    Samplers: "agnostic" is a shuffled pass; "aware" draws with replacement, image i of class y with
    probability proportional to n_y^-gamma; "progressive" moves from draws alike of all images to
    those of "aware" in the course of the trainer's `max_epochs`; "cycles" is the public
    class-balanced sampler, for stage 2. An epoch is as long as one pass of the training set,
    whatever the sampler.

    Args:
        batch_size: B of each stream, total over all ranks.
        first, second: sampler of each stream; `second` None for batches without partners.
        class_aware_gamma: 0 is class-agnostic, 1 makes all classes equally likely, 2 reverses them.
        per_class: m of "cycles", images of a class in a row.
        drop_last: leave out a ragged last batch, and maybe the only image of a class with it.
        probe_split: the reader's split that the linear probe is trained on, apart from the others.
    """

    def __init__(
        self,
        batch_size: int,
        first: str = "agnostic",
        second: str | None = "aware",
        class_aware_gamma: float = 1.0,
        per_class: int = 4,
        drop_last: bool = False,
        probe_split: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for name, sampler in (("first", first), ("second", second or "agnostic")):
            if sampler not in SAMPLERS:
                raise ValueError(f"data.{name}={sampler!r}: expected one of {', '.join(SAMPLERS)}")

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(K,) training images per class; a ValueError if a class has none, to draw it from."""
        images = self.images("train")
        counts = np.bincount(images.labels[self.train_indices], minlength=len(images.class_names))
        if (counts == 0).any():
            empty = [images.class_names[k] for k in np.flatnonzero(counts == 0)[:5]]
            said = f"no training image of class {', '.join(map(repr, empty))}"
            raise ValueError(f"{said}: raise subset={self._h.subset} or use all images")
        return counts

    def setup(self, stage: str) -> None:
        """Say how long the tail is, once the data are read and the sizes checked."""
        counts = self.class_counts
        if stage == "fit":
            self._schedule()
            log.info(
                "%d training images of %d classes, %d to %d per class; %d classes have more than "
                "100, %d have fewer than 20",
                *(counts.sum(), len(counts), counts.max(), counts.min()),
                *((counts > 100).sum(), (counts < 20).sum()),
            )

    def train_dataloader(self) -> ResumableLoader:
        images = self._drawn()
        first = (images, {"images": "train"}, "labels", "indices")
        second = (images, {"partners": "train"}, "partner_labels", "partner_indices")
        batches = DrawnBatches(first, second)
        return ResumableLoader(batches, self._schedule(), self._h.num_workers)

    def probe_dataloader(self) -> EvaluationLoader | None:
        """Un-augmented images for the linear probe; None without `probe_split`."""
        return None if self._h.probe_split is None else self._evaluation(self._h.probe_split)

    def augmented_dataloader(self, passes: int) -> EvaluationLoader:
        """Every training image `passes` times, each time augmented anew; for cached features."""
        batches: Any = AugmentedPasses(self._drawn(), passes)
        return self._loader(batches)

    def _drawn(self) -> DrawnImages:
        return DrawnImages(self.images("train"), self.train_indices, self.transform, self._h.seed)

    def _schedule(self) -> streams.StreamBatches:
        h = self._h
        drawn = [self._stream(h.first, 0)]
        if h.second is not None:
            drawn.append(self._stream(h.second, PARTNER_STREAM))
        sizes = [h.batch_size] * len(drawn)
        return streams.StreamBatches(drawn, sizes, h.drop_last, *rank_and_world(self))

    def _stream(self, sampler: str, number: int) -> streams.Stream:
        """`number` tells apart the random numbers of the two streams."""
        seed, size = self._h.seed, len(self.train_indices)
        if sampler == "agnostic":
            return streams.Permutations(seed, size, number=number)
        labels = self.images("train").labels[self.train_indices]
        if sampler == "cycles":
            return streams.ClassCycles(seed, labels, self._h.per_class, size, number + 1)
        per_image, _ = class_aware_weights(self.class_counts, self._h.class_aware_gamma)
        if sampler == "aware":
            return streams.WeightedDraws(seed, per_image[labels], size, number + 2)
        # Without a trainer, as when the precision is measured, one epoch is all there is.
        epochs = 1 if self.trainer is None else self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError("a progressive sampler needs trainer.max_epochs, in which it moves")
        return streams.ProgressiveDraws(seed, per_image[labels], epochs, size, number + 2)


class AugmentedPasses:
    """Evaluation batches of augmented images; `indices` number the draws, pass after pass."""

    def __init__(self, images: DrawnImages, passes: int) -> None:
        self.images, self.passes = images, passes

    def __len__(self) -> int:
        return self.passes * len(self.images.members)

    def __getitems__(self, positions: NDArray[np.int64]) -> dict[str, Tensor]:
        passes, places = np.divmod(positions, len(self.images.members))
        [view], labels, _ = self.images.load(streams.Draws(places, passes), {"stage2": "train"})
        return {"images": view, "labels": labels, "indices": torch.from_numpy(positions)}
