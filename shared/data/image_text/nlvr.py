"""NLVR2: is a sentence true of two photographs?"""

from collections.abc import Mapping
from typing import Any, ClassVar

from shared.data.image_text.annotations import Annotation
from shared.data.image_text.labelled_sentences import SentenceData


class NLVRData(SentenceData):
    """Annotations {images: [left, right], sentence, label: "True" or "False"} (docs/papers/albef.md,
    section 6).

    Batch: see `SentenceData`; `images` (2 B, 3, S, S), all left ones first; `labels` 1 for true. If
    one of two pictures can't be read, the entry counts as unreadable.
    """

    required: ClassVar[Mapping[str, Any]] = {**SentenceData.required, "images": list[str]}
    class_names = ("False", "True")

    def image_names(self, entry: Annotation) -> list[str]:
        return entry["images"]

    def problem(self, entry: Annotation, split: str) -> str | None:
        if len(entry["images"]) != 2:
            return f"expected two pictures in `images`, it has {len(entry['images'])}"
        return super().problem(entry, split)
