"""Training batches of several views of the same images; of a single one to train with labels."""

from collections.abc import Sequence
from typing import Any

from shared.data.image_module import ImageDataModule
from shared.data.loading.batches import DrawnBatches, DrawnImages
from shared.data.loading.loader import ResumableLoader, rank_and_world
from shared.data.loading.streams import Permutations, Schedule, StreamBatches


class ViewsData(ImageDataModule):
    """Batches of `views` of the training images, and what `ImageDataModule` gives.

    Training batch, with B = batch_size divided by the world size: one (B, C, H, W) float32 per name
    in `views`, an independent draw of its recipe, `labels` (B,) int64 and `indices` (B,) int64, the
    images' places in the training set. An epoch is `steps_per_epoch` batches from concatenated
    passes, or with None one pass without the partial batch at its end.
    """

    def __init__(
        self, views: Sequence[str], batch_size: int, steps_per_epoch: int | None = None, **base: Any
    ) -> None:
        super().__init__(**base)

    def setup(self, stage: str) -> None:
        """Read the data and check sizes, so that bad input is refused before training starts."""
        if stage == "fit":
            self._schedule(*rank_and_world(self))

    def train_dataloader(self) -> ResumableLoader:
        h = self._h
        images = DrawnImages(self.images("train"), self.train_indices, self.transform, h.seed)
        schedule = self._schedule(*rank_and_world(self))
        recipes = {view: view for view in h.views}
        batches = DrawnBatches((images, recipes, "labels", "indices"))
        return ResumableLoader(batches, schedule, h.num_workers)

    def _schedule(self, rank: int, world: int) -> Schedule:
        h, size = self._h, len(self.train_indices)
        # Made in either case: it refuses a batch that is larger than the training set.
        once = StreamBatches([Permutations(h.seed, size)], [h.batch_size], True, rank, world)
        if h.steps_per_epoch is None:
            return once
        stream = Permutations(h.seed, size, h.batch_size * h.steps_per_epoch)
        return StreamBatches([stream], [h.batch_size], True, rank, world)
