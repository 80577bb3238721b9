"""Which images of a training set are labelled: pure functions of a seed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.data.images import ImageSet


class Split(NamedTuple):
    """Sorted, disjoint data set indices."""

    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]


def seeded_subset(count: int, size: int | None, seed: int) -> NDArray[np.int64]:
    """`size` sorted indices below `count`, drawn without replacement, or all of them for None."""
    if size is None:
        return np.arange(count)
    if not 0 < size <= count:
        raise ValueError(f"subset={size} but there are {count} training samples")
    return np.sort(np.random.default_rng([seed, 0x5B5]).permutation(count)[:size])


def per_class_split(
    images: ImageSet, candidates: NDArray[np.int64], num_labels: int, seed: int
) -> Split:
    """Label the first num_labels / C of each class's shuffled candidates; the rest is unlabelled.

    As the official CIFAR split (docs/papers/comatch.md, section 6.1): labelled images are not among
    the unlabelled ones. A larger `num_labels` of the same seed extends the smaller labelled set.
    """
    classes = len(images.class_names)
    per_class, rest = divmod(num_labels, classes)
    if per_class < 1 or rest:
        raise ValueError(f"num_labels={num_labels} is not a positive multiple of {classes} classes")
    generator = np.random.default_rng([seed, 0x5B11])
    chosen = []
    for number, name in enumerate(images.class_names):
        members = candidates[images.labels[candidates] == number]
        if len(members) < per_class:
            needed = f"num_labels={num_labels} needs {per_class} labelled ones of each"
            raise ValueError(f"class {name!r} has {len(members)} images, but {needed}")
        chosen.append(generator.permutation(members)[:per_class])
    labelled = np.sort(np.concatenate(chosen))
    return Split(labelled, np.setdiff1d(candidates, labelled))
