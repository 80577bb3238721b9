"""SNLI-VE: does a photograph of Flickr30k entail a sentence, contradict it, or neither?"""

from collections.abc import Mapping
from typing import Any, ClassVar

from shared.data.image_text.annotations import Annotation
from shared.data.image_text.labelled_sentences import SentenceData


class EntailmentData(SentenceData):
    """Annotations {image: Flickr's number, sentence, label} (docs/papers/albef.md, section 6).

    The picture is `<image>.jpg` below `image_root`. Batch: see `SentenceData`; `labels` 2 for
    entailment, 1 for neutral, 0 for contradiction.
    """

    required: ClassVar[Mapping[str, Any]] = {**SentenceData.required, "image": str}
    class_names = ("contradiction", "neutral", "entailment")

    def image_names(self, entry: Annotation) -> list[str]:
        return [f"{entry['image']}.jpg"]
