"""Semi-supervised batches: a few labelled images beside mu times as many unlabelled ones.

The same (seed, split_seed) gives CoMatch and every baseline the same labelled images, the same
batches and the same weak and strong0 views, whichever views it asks for.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from shared.data.image_module import ImageDataModule
from shared.data.loading import streams
from shared.data.loading.batches import DrawnBatches, DrawnImages
from shared.data.loading.loader import ResumableLoader, rank_and_world
from shared.data.splits import Split, per_class_split
from shared.nn.building import call


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
        if stage == "fit":
            self._schedule(*rank_and_world(self))

    def train_dataloader(self) -> ResumableLoader:
        h, train = self._h, self.images("train")
        labelled, unlabelled = (
            DrawnImages(train, part, self.transform, h.seed) for part in self.train_split
        )
        # "labelled" is a stream of draws of its own; the recipe is the weak one.
        parts = [(labelled, {"labelled": "weak"}, "labels", "labelled_indices")]
        if h.views:
            recipes = {view: view for view in h.views}
            parts.append((unlabelled, recipes, "hidden_labels", "unlabelled_indices"))
        schedule = self._schedule(*rank_and_world(self))
        return ResumableLoader(DrawnBatches(*parts), schedule, h.num_workers)

    def _schedule(self, rank: int, world: int) -> streams.StreamBatches:
        h, (labelled, unlabelled) = self._h, self.train_split
        sizes, batch_sizes = (len(labelled), len(unlabelled)), (h.batch_size, h.batch_size * h.mu)
        check_sizes(sizes, batch_sizes, world)
        if h.steps_per_epoch is None:
            return one_pass(h.seed, sizes, batch_sizes, h.labelled_repeat, rank, world)
        return fixed_steps(h.seed, sizes, batch_sizes, h.steps_per_epoch, rank, world)


Pair = tuple[int, int]  # of the labelled and of the unlabelled set


def fixed_steps(
    seed: int, sizes: Pair, batch_sizes: Pair, steps: int, rank: int = 0, world: int = 1
) -> streams.StreamBatches:
    """`steps` batches an epoch of concatenated shuffled passes, so that batches may span two."""
    passes = [
        streams.Permutations(seed, size, steps * batch, number)
        for number, (size, batch) in enumerate(zip(sizes, batch_sizes, strict=True))
    ]
    return streams.StreamBatches(passes, batch_sizes, True, rank, world)


def one_pass(
    seed: int, sizes: Pair, batch_sizes: Pair, repeat: int = 1, rank: int = 0, world: int = 1
) -> streams.StreamBatches:
    """One pass of the unlabelled set an epoch, with a shorter last batch; the labelled set, each
    image listed `repeat` times, is cut in the same way and starts anew whenever it is exhausted."""
    listed = sizes[0] * repeat
    if listed < batch_sizes[0]:
        said = f"batch_size={batch_sizes[0]} is larger than the labelled set ({listed} a pass)"
        raise ValueError(f"{said}; lower batch_size or raise labelled_repeat")
    passes = math.ceil(math.ceil(sizes[1] / batch_sizes[1]) / math.ceil(listed / batch_sizes[0]))
    restarted = streams.RestartedPasses(seed, sizes[0], passes, repeat)
    once = streams.Permutations(seed, sizes[1], number=1)
    return streams.StreamBatches([restarted, once], batch_sizes, False, rank, world)


def check_sizes(sizes: Pair, batch_sizes: Pair, world: int) -> None:
    """Refuse empty sets, a batch above the unlabelled set, and batches that ranks can't share."""
    names = (("labelled", "batch_size"), ("unlabelled", "batch_size * mu"))
    for (name, key), size, batch in zip(names, sizes, batch_sizes, strict=True):
        if size < 1:
            raise ValueError(f"the {name} set is empty: check num_labels and subset")
        if batch < 1 or batch % world:
            said = f"{key} = {batch} is not a positive multiple of the world size {world}"
            raise ValueError(f"{said}: it is the total over all ranks")
    if batch_sizes[1] > sizes[1]:
        said = f"batch_size * mu = {batch_sizes[1]} is larger than the unlabelled set ({sizes[1]})"
        raise ValueError(f"{said}: lower batch_size or mu, or use more data")
