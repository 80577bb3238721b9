"""WebVision-like training data, and for scoring alone what its images really show."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.loading.batches import PlainImageBatches
from shared.data.loading.loader import EvaluationLoader
from shared.data.multi_view import ViewsData
from shared.data.readers.files import integers, one_line, read_json
from shared.data.readers.webvision import SOURCES, training_list


class WebData(ViewsData):
    """`ViewsData` in the WebVision layout whose true labels may be known, for the audit alone.

    Args:
        truth: `{path: {"label": true label, or null if out of distribution}}` for every training
            path of the lists; None for data whose truth nobody knows.
        audit_images: training images audited in a validation, evenly spaced; the test audits all.
    """

    def __init__(self, truth: str | None, audit_images: int, **rest: Any) -> None:
        super().__init__(**rest)

    def audit_dataloader(self, split: str) -> EvaluationLoader | None:
        """Un-augmented training images with their web labels; None if no truth is known."""
        if self._h.truth is None:
            return None
        members = self.train_indices
        if split != "test" and self._h.audit_images < len(members):
            places = np.linspace(0, len(members) - 1, self._h.audit_images).astype(np.int64)
            members = members[places]
        return self._loader(PlainImageBatches(self.images("train"), self.transform, members))

    @cached_property
    def true_labels(self) -> NDArray[np.int64]:
        """(N,) true labels of the training set, -1 of images out of distribution; DataNotFoundError
        or, of a file that is not about the listed images, DataCorruptError."""
        path, images = Path(self._h.truth), self.images("train")
        known = read_json(path)
        root, lists = self._h.dataset["root"], self._h.dataset.get("lists", SOURCES)
        paths, web_labels = training_list(Path(root), len(images.class_names), lists)
        if not np.array_equal(web_labels, images.labels):
            raise DataCorruptError(f"{root}: the training set is not that of the lists in info/")
        try:
            labels = [known[image]["label"] for image in paths]
            integers([label for label in labels if label is not None])
            return np.array([-1 if label is None else label for label in labels], np.int64)
        except (ValueError, KeyError, TypeError) as error:
            reason = one_line(repr(error))
            raise DataCorruptError(f"{path}: no true label of each image ({reason})") from error
