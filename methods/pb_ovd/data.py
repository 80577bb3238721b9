"""Annotation files whose categories have embedded names (docs/papers/pb_ovd.md, section 6.3).

    categories    id, name; embedding {ClipEmb: [numbers]}; split, `seen` or `unseen`

A file of embeddings, if there is one, is a JSON object from names to lists of numbers.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.data.detection.module import DetectionData
from shared.data.errors import DataCorruptError
from shared.data.readers.files import is_number, read_json, shortened
from shared.data.readers.instances import Instances, Lists

EMBEDDING = "ClipEmb"  # what the official files call it, whatever model it is of
SPLITS = ("seen", "unseen")
WIDEST = 1 << 16  # numbers of an embedding


@dataclass(frozen=True)
class Vocabulary:
    """The K classes of a set.

    Attributes:
        embeddings: (K, D) of their names; NaN of a class without one.
        splits: (K,) `seen`, `unseen`, or empty where the file does not say.
    """

    embeddings: NDArray[np.float32]
    splits: NDArray[np.str_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(K,) whether a class has an embedding."""
        return np.asarray(~np.isnan(self.embeddings).any(axis=1))


def read_vocabulary(instances: Instances, embeddings: str | None) -> Vocabulary:
    """Read the embeddings and splits of the classes of an annotation file.

    Args:
        embeddings: the file that has them; None: the annotation file itself.

    Raises:
        DataNotFoundError: there is no such file.
        DataCorruptError: no class has an embedding, or one has none of numbers; says which.
    """
    entries = {entry["id"]: entry for entry in read_json(instances.origin)["categories"]}
    rows = [entries[number] for number in instances.category_ids.tolist()]
    table = None if embeddings is None else read_vectors(embeddings)
    origin = instances.origin if embeddings is None else embeddings
    vectors, splits = [], []
    for row, name in zip(rows, instances.class_names, strict=True):
        within = row.get("embedding")
        found = within.get(EMBEDDING) if isinstance(within, dict) else within
        vectors.append(table.get(name) if table else _vector(found, f"{origin}: {name}"))
        if (split := row.get("split", "")) not in ("", *SPLITS):
            told = f"split of {name} is {shortened(split)}, expected seen or unseen"
            raise DataCorruptError(f"{instances.origin}: {told}")
        splits.append(split)
    widths = sorted({len(vector) for vector in vectors if vector is not None})
    if not widths:
        told = f"no class has an embedding (embedding.{EMBEDDING})"
        raise DataCorruptError(f"{origin}: {told}: name a file of them by data.embeddings=FILE")
    if len(widths) > 1:
        raise DataCorruptError(f"{origin}: embeddings of {widths[0]} and of {widths[-1]} numbers")
    nothing = [np.nan] * widths[0]
    matrix = np.array([nothing if v is None else v for v in vectors], np.float32)
    return Vocabulary(matrix, np.array(splits))


def read_vectors(path: str) -> dict[str, list[float]]:
    """Embedded names of a JSON object from names to lists of numbers, all of them checked."""
    table = read_json(path)
    if not isinstance(table, dict) or not table:
        raise DataCorruptError(f"{path}: expected a JSON object from names to lists of numbers")
    vectors = {name: _vector(value, f"{path}: {name}") for name, value in table.items()}
    return {name: vector for name, vector in vectors.items() if vector is not None}


def _vector(value: Any, where: str) -> list[float] | None:
    if value is None:
        return None
    right = isinstance(value, list) and 0 < len(value) <= WIDEST and all(map(is_number, value))
    if not right or not np.isfinite(np.array(value, np.float32)).all():
        raise DataCorruptError(f"{where}: embedding is {shortened(value)}, expected numbers")
    return value


def restricted(instances: Instances, known: NDArray[np.bool_], training: bool) -> Instances:
    """The annotations of the `known` (K,) classes, and the images that then show something: an
    object or a region of many whose sides exceed a pixel (`COCODataset` and
    `has_valid_annotation` of the official code).

    Args:
        training: objects of one pixel or less within their image are left out as well.
    """
    annotated = known[instances.labels - 1]
    shown = annotated & (instances.boxes[:, 2:] > 1).all(axis=1)
    images = np.unique(instances.images[shown])
    if not len(images):
        raise DataCorruptError(f"{instances.origin}: no image shows a class with an embedding")
    if training:
        sides = instances.corners[:, 2:] - instances.corners[:, :2]
        annotated &= (sides > 1).all(axis=1)
    annotated &= np.isin(instances.images, images)
    place = np.cumsum(known, dtype=np.int64)  # new labels of the known classes
    counts = np.bincount(instances.images[annotated], minlength=len(instances))[images]
    lists: dict[str, Any] = {
        name: found and _relabelled(found, known, images)
        for name in ("negative", "not_exhaustive")
        for found in [getattr(instances, name)]
    }
    letters = "".join(np.array(list(instances.frequencies))[known]) if instances.frequencies else ""
    return replace(
        instances,
        image_ids=instances.image_ids[images],
        paths=instances.paths[images] if len(instances.paths) else instances.paths,
        sizes=instances.sizes[images],
        category_ids=instances.category_ids[known],
        class_names=tuple(np.array(instances.class_names, object)[known]),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        ids=instances.ids[annotated],
        labels=place[instances.labels[annotated] - 1],
        boxes=instances.boxes[annotated],
        areas=instances.areas[annotated],
        crowd=instances.crowd[annotated],
        masks=None,
        frequencies=letters,
        **lists,
    )


def _relabelled(lists: Lists, known: NDArray[np.bool_], images: NDArray[np.int64]) -> Lists:
    """The known labels, as they are then numbered, of the images that stay."""
    of_image = np.repeat(np.arange(len(lists.starts) - 1), np.diff(lists.starts))
    stay = known[lists.values - 1] & np.isin(of_image, images)
    counts = np.bincount(of_image[stay], minlength=len(lists.starts) - 1)[images]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Lists(np.cumsum(known, dtype=np.int64)[lists.values[stay] - 1], starts)


class OpenVocabularyData(DetectionData):
    """`DetectionData` of the classes whose names are embedded; those of splits may differ.

    Args:
        embeddings: a file of embedded names; None: the annotation files have them.
        detection: see `DetectionData`.
    """

    def __init__(self, embeddings: str | None, **detection: Any) -> None:
        super().__init__(**detection)
        if self.preparation.masks:
            raise ValueError("data.preparation.masks: boxes alone are detected, set it to false")
        self._vocabularies: dict[str, Vocabulary] = {}

    def instances(self, split: str) -> Instances:
        """Return the annotations of a split, read once, without classes that have no embedding."""
        if split not in self._vocabularies:
            whole = super().instances(split)
            vocabulary = read_vocabulary(whole, self._h.embeddings)
            known = vocabulary.known
            self._instances[split] = restricted(whole, known, training=split == "train")
            embeddings, splits = vocabulary.embeddings[known], vocabulary.splits[known]
            self._vocabularies[split] = Vocabulary(embeddings, splits)
        return self._instances[split]

    def texts(self, split: str) -> Tensor:
        """(K + 1, D) embedded names of a split's classes behind a row of zeros, the background."""
        self.instances(split)
        embeddings = self._vocabularies[split].embeddings
        return torch.from_numpy(np.pad(embeddings, ((1, 0), (0, 0))))

    def class_splits(self, split: str) -> NDArray[np.str_]:
        """(K,) `seen` or `unseen`, or empty, of a split's classes."""
        self.instances(split)
        return self._vocabularies[split].splits
