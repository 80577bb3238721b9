"""Which images of a detection set make the batches of an epoch: pure functions of (seed, epoch).

A config names `shuffled`, `random_batches`, `class_aware`, `repeat_factor` or `bilevel`. Source:
docs/papers/simcal.md, sections 3.2 and 3.8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.data.loading.streams import (
    ClassCycles,
    Draws,
    Permutations,
    Schedule,
    Stream,
    number_repeats,
)
from shared.data.readers.instances import Instances

LANDSCAPE = 1  # the group of images that are wider than high; 0 is that of the others


@dataclass(frozen=True)
class TrainingImages:
    """The n images that a detector learns from.

    Attributes:
        members: (n,) int64, their places among the set's images, rising.
        of_class: for each of K classes the places in `members` of the images that show it.
        instance_counts: (K,) int64, annotations of each class in the whole set.
        groups: (n,) int64, `LANDSCAPE` or 0.
    """

    members: NDArray[np.int64]
    of_class: Sequence[NDArray[np.int64]]
    instance_counts: NDArray[np.int64]
    groups: NDArray[np.int64]


class Plan(NamedTuple):
    """A batch of this rank: what is drawn, and the label each image is drawn for, (B,) or None."""

    draws: Draws
    classes: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Share:
    """Batches of `size` images, of which rank r of w reads the r-th part; and the random seed."""

    size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % self.world:
            told = f"batches of {self.size} images can't be shared by {self.world} ranks evenly"
            raise ValueError(f"{told}: the size is the total over all ranks")

    @property
    def rows(self) -> slice:
        """This rank's part of a batch."""
        local = self.size // self.world
        return slice(self.rank * local, (self.rank + 1) * local)


def training_images(instances: Instances, smallest_side: int) -> TrainingImages:
    """The images that have an object to learn from and whose sides are not below `smallest_side`;
    an image without one would be drawn for a class that it doesn't show."""
    labels, images = instances.labels[instances.usable], instances.images[instances.usable]
    large = instances.sizes.min(axis=1) >= smallest_side
    members = np.unique(images[large[images]])
    if not len(members):
        raise ValueError(f"{instances.origin}: no image has an object that can be learnt from")
    pairs = np.unique(np.stack([labels, images])[:, large[images]], axis=1)
    starts = np.searchsorted(pairs[0], np.arange(1, instances.num_classes + 1))
    places = np.searchsorted(members, pairs[1])
    heights, widths = instances.sizes[members].T
    return TrainingImages(
        members,
        np.split(places, starts[1:]),
        instances.instance_counts,
        np.where(widths > heights, LANDSCAPE, 0),
    )


def shuffled(images: TrainingImages, share: Share, aspect_groups: bool = True) -> Schedule:
    """All images once an epoch, in random order."""
    stream = Permutations(share.seed, len(images.members))
    return GroupedBatches(stream, images.groups * aspect_groups, share)


def random_batches(images: TrainingImages, share: Share, steps_per_epoch: int) -> Schedule:
    """All images in random order, pass after pass, cut into epochs of so many batches."""
    stream = Permutations(share.seed, len(images.members), steps_per_epoch * share.size)
    return GroupedBatches(stream, np.zeros_like(images.groups), share)


def class_aware(
    images: TrainingImages, share: Share, steps_per_epoch: int, per_class: int = 1
) -> Schedule:
    """Classes in shuffled cycles, and of each class its images in shuffled cycles."""
    count = steps_per_epoch * share.size
    stream = ClassCycles(share.seed, _shown(images), per_class, count)
    return GroupedBatches(stream, np.zeros_like(images.groups), share)


def repeat_factor(
    images: TrainingImages, share: Share, threshold: float = 0.001, aspect_groups: bool = True
) -> Schedule:
    """All images, those of rare classes several times an epoch, see `extra_copies`."""
    copies = extra_copies(images.of_class, len(images.members), threshold)
    return GroupedBatches(Copies(share.seed, 1 + copies), images.groups * aspect_groups, share)


def bilevel(
    images: TrainingImages,
    share: Share,
    images_per_class: int = 1,
    steps_per_epoch: int = 1000,
    tau: float = 0.0,
    count_cap: int = 100,
) -> Schedule:
    """Episodes of classes drawn evenly and of images drawn for them, see `Episodes`."""
    return Episodes(images, share, images_per_class, steps_per_epoch, tau, count_cap)


def extra_copies(
    of_class: Sequence[NDArray[np.int64]], count: int, threshold: float
) -> NDArray[np.int64]:
    """(count,) how often each image is listed beside its first time.

    r_c = max(1, sqrt(threshold / f_c)) of a class in a share f_c of the images; of an image r is
    the largest of its classes', rounded up, and where that exceeds 1 r copies are added. Source:
    FishYuLi/BalancedGroupSoftmax@90e04fd
    `mmdet/datasets/loader/sampler.py:GroupSampler_addrepeat`.
    """
    factors = np.ones(count)
    for members in of_class:
        if len(members):
            factor = np.sqrt(threshold * count / len(members))
            factors[members] = np.maximum(factors[members], factor)
    rounded = np.ceil(factors).astype(np.int64)
    return np.where(rounded > 1, rounded, 0)


def class_probabilities(
    counts: NDArray[np.int64], tau: float, count_cap: int
) -> NDArray[np.float64]:
    """(K,) probabilities to draw classes of so many instances, min(n, count_cap) ** tau by their
    sum, and 0 of those that have none: even ones for tau 0."""
    weights = np.where(counts > 0, np.minimum(counts, count_cap).astype(np.float64) ** tau, 0.0)
    return weights / weights.sum()


def episode_draws(
    of_class: Sequence[NDArray[np.int64]],
    probabilities: NDArray[np.float64],
    class_uniforms: NDArray,
    image_uniforms: NDArray,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images and the classes of E episodes, both (E, C * k), class by class.

    C classes are drawn, and k images of each, all with replacement: image c * k + i is drawn for
    the c-th class (docs/papers/simcal.md, pitfall 1).

    Args:
        of_class: the images of each class.
        probabilities: of the classes; those of 0 are never drawn.
        class_uniforms: (E, C) random numbers in [0, 1).
        image_uniforms: (E, C, k) random numbers in [0, 1).
    """
    drawn = np.flatnonzero(probabilities)
    bounds = np.cumsum(probabilities[drawn])
    ranks = np.searchsorted(bounds / bounds[-1], class_uniforms, side="right")
    classes = drawn[ranks.clip(max=len(drawn) - 1)]
    sizes = np.array([len(members) for members in of_class])
    starts = np.cumsum(sizes) - sizes
    within = np.floor(image_uniforms * sizes[classes][..., None]).astype(np.int64)
    images = np.concatenate(of_class)[starts[classes][..., None] + within]
    repeated = np.broadcast_to(classes[..., None], images.shape)
    return images.reshape(len(images), -1), repeated.reshape(len(images), -1)


class Copies(Stream):
    """Every image as often as `times` (n,) says, in random order."""

    def __init__(self, seed: int, times: NDArray[np.int64], number: int = 5) -> None:
        super().__init__(seed, int(times.sum()), number)
        self.listed = np.repeat(np.arange(len(times)), times)

    def draws(self, epoch: int) -> Draws:
        return number_repeats(self._generator(epoch).permutation(self.listed), epoch)


class GroupedBatches:
    """The draws of a stream in batches of one group each, in random order.

    Each group is filled up to whole batches by its own first draws, as the official sampler does;
    the groups' sizes may not change from one epoch to another.
    """

    def __init__(self, stream: Stream, groups: NDArray[np.int64], share: Share) -> None:
        self.stream, self.groups, self.share = stream, groups, share
        sizes = np.bincount(groups[stream.draws(0).positions])
        self.steps = int(np.ceil(sizes / share.size).sum())

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Plan]:
        draws = self.stream.draws(epoch)
        groups = self.groups[draws.positions]
        batches = []
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            whole = -(-len(rows) // self.share.size)
            batches.append(np.resize(rows, (whole, self.share.size)))
        order = np.random.default_rng([self.share.seed & (2**64 - 1), epoch, 6])
        for batch in order.permutation(np.concatenate(batches))[start:]:
            own = batch[self.share.rows]
            yield Plan(Draws(draws.positions[own], draws.passes[own]))


class Episodes(Stream):
    """Each batch an episode: classes drawn with replacement, and `images_per_class` images of each
    (twangnh/SimCal@e5f3076 `mmdet/datasets/loader/sampler.py:EpisodicSampler`)."""

    def __init__(
        self,
        images: TrainingImages,
        share: Share,
        images_per_class: int,
        steps_per_epoch: int,
        tau: float,
        count_cap: int,
    ) -> None:
        classes, rest = divmod(share.size, images_per_class)
        if rest:
            told = f"batches of {share.size} images don't hold whole classes"
            raise ValueError(f"{told} of images_per_class={images_per_class}")
        super().__init__(share.seed, steps_per_epoch, number=7)
        self.of_class, self.share = images.of_class, share
        self.shape = (steps_per_epoch, classes, images_per_class)
        shown = np.array([len(members) > 0 for members in images.of_class])
        counts = np.where(shown, images.instance_counts, 0)
        self.probabilities = class_probabilities(counts, tau, count_cap)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Plan]:
        generator = self._generator(epoch)
        uniforms = generator.random(self.shape[:2]), generator.random(self.shape)
        images, classes = episode_draws(self.of_class, self.probabilities, *uniforms)
        passes = number_repeats(images.reshape(-1), epoch).passes.reshape(images.shape)
        rows = self.share.rows
        for step in range(start, len(self)):
            draws = Draws(images[step, rows], passes[step, rows])
            yield Plan(draws, classes[step, rows] + 1)


def _shown(images: TrainingImages) -> list[NDArray[np.int64]]:
    return [members for members in images.of_class if len(members)]
