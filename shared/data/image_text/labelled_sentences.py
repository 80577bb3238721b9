"""Sentences about pictures, each with a label: the files of NLVR2 and SNLI-VE
(docs/papers/albef.md, section 6)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import ImageTextBatch, ImageTextData, Keys
from shared.data.readers.files import shortened


class SentenceData(ImageTextData):
    """Annotations with `sentence` and `label`; subclasses say where the pictures are.

    Batch, in training as in evaluation: what `ImageTextData` gives; `input_ids` and
    `attention_mask` (B, L) int64, the cleaned sentences of up to `max_words`, padded to the longest
    and never cut; `labels` (B,) int64, places in `class_names`, which are those of the files.
    """

    required: ClassVar[Mapping[str, Any]] = {"sentence": str, "label": str}
    class_names: ClassVar[tuple[str, ...]]

    def __init__(self, max_words: int = 30, **base: Any) -> None:
        super().__init__(**base)

    def problem(self, entry: Annotation, split: str) -> str | None:
        if entry["label"] in self.class_names:
            return None
        known = ", ".join(map(repr, self.class_names))
        return f"label {shortened(entry['label'])} is unknown; known are {known}"

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        clean = self.rules.clean_caption
        sentences = [clean(entry["sentence"], self._h.max_words) for entry in entries]
        ids, mask = self.tokenizer.batch(sentences)
        labels = torch.tensor([self.class_names.index(entry["label"]) for entry in entries])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class NLVRData(SentenceData):
    """Annotations {images: [left, right], sentence, label: "True" or "False"}. Batch: see
    `SentenceData`; `images` (2 B, 3, S, S), all left ones first; `labels` 1 for true. If one of two
    pictures can't be read, the entry counts as unreadable."""

    required: ClassVar[Mapping[str, Any]] = {**SentenceData.required, "images": list[str]}
    class_names = ("False", "True")

    def image_names(self, entry: Annotation) -> list[str]:
        return entry["images"]

    def problem(self, entry: Annotation, split: str) -> str | None:
        if len(entry["images"]) != 2:
            return f"expected two pictures in `images`, it has {len(entry['images'])}"
        return super().problem(entry, split)


class EntailmentData(SentenceData):
    """Annotations {image: Flickr's number, sentence, label}. The picture is `<image>.jpg` below
    `image_root`. Batch: see `SentenceData`; `labels` 2 for entailment, 1 for neutral, 0 for
    contradiction."""

    required: ClassVar[Mapping[str, Any]] = {**SentenceData.required, "image": str}
    class_names = ("contradiction", "neutral", "entailment")

    def image_names(self, entry: Annotation) -> list[str]:
        return [f"{entry['image']}.jpg"]
