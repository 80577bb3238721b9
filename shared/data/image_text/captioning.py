"""Captioning: the files of COCO (Karpathy's split), Flickr30k and NoCaps, and their references.

    coco_karpathy_train.json            [{image, caption, image_id}], one entry for each caption
    coco_karpathy_{val,test}.json       [{image, caption: texts}]; the image's id is the integer
                                        behind the last "_" of its file name
    coco_karpathy_{val,test}_gt.json    COCO: {images: [{id}], annotations: [{image_id, caption}]}
    nocaps_{val,test}.json              [{image, img_id}]; the images of its references also name
                                        their `domain`

Source: docs/papers/blip.md, sections 3.10, 6 and 7.3; salesforce/BLIP@056a169
`data/coco_karpathy_dataset.py`, `data/nocaps_dataset.py`, `train_caption.py:evaluate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from shared.data.errors import DataCorruptError
from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import AnnotatedSamples, ImageTextBatch, ImageTextData, Keys
from shared.data.readers.files import LARGEST, is_integer, is_text, shortened
from shared.data.readers.instances import tables


@dataclass
class References:
    """What people wrote about images, image id -> texts, and the images' domains, if named."""

    captions: dict[int, list[str]]
    domains: dict[int, str] = field(default_factory=dict)


class CaptioningData(ImageTextData):
    """Pictures with captions, to learn to write them, and pictures to write about.

    Training batch: `images`, `indices`, `input_ids` and `attention_mask` (B, L) int64 of `prompt`
    and cleaned caption, padded to the longest and cut to `max_text_tokens`. Entries without a word
    are left out.

    Evaluation batch: `images`, `indices` and `image_ids` (B,) int64, the ids that results and
    references have. `references`: split -> file in COCO's layout; null, or a split that it leaves
    out, takes the captions of the entries, where these have any.
    """

    def __init__(
        self,
        prompt: str = "a picture of ",
        max_text_tokens: int = 40,
        max_words: int = 30,
        references: Mapping[str, str | None] | None = None,
        text_rules: str = "blip",
        **base: Any,
    ) -> None:
        super().__init__(text_rules=text_rules, **base)
        if prompt and not prompt.endswith(" "):
            raise ValueError(f"prompt={prompt!r}: a space at its end keeps its last word whole")

    @cached_property
    def opening(self) -> Tensor:
        """(P,) int64: what the decoder of a caption starts from, [DEC] and the prompt. As many of
        the first ids of a training text are no target."""
        return self.tokenizer.opening(self._h.prompt)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self._h.max_text_tokens < (least := len(self.opening) + 2):
            told = f"max_text_tokens={self._h.max_text_tokens} has no room for a word"
            raise ValueError(f"{told} behind the prompt {self._h.prompt!r}: give {least} at least")

    def problem(self, entry: Annotation, split: str) -> str | None:
        caption = entry.get("caption")
        if split != "train":
            if caption is not None and not _are_texts(caption):
                return f"caption is {shortened(caption)}, expected a list of texts with words"
            return None if self._id_of(entry) is not None else _no_id(entry)
        if not is_text(caption):
            return f"caption is {shortened(caption)}, expected one text"
        return None if self.caption(entry) else "its caption has no word"

    def caption(self, entry: Annotation) -> str:
        return self.rules.clean_caption(entry["caption"], self._h.max_words)

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        if keys is None:
            return {"image_ids": torch.tensor([self._id_of(entry) for entry in entries])}
        texts = [self._h.prompt + self.caption(entry) for entry in entries]
        ids, mask = self.tokenizer.batch(texts, self._h.max_text_tokens)
        return {"input_ids": ids, "attention_mask": mask}

    def evaluated(self, split: str) -> AnnotatedSamples:
        """All images of a split; DataCorruptError also where an id occurs twice."""
        if split in self._evaluated:
            return self._evaluated[split]
        samples, entries = super().evaluated(split), self.entries(split)
        first: dict[int | None, int] = {}
        for number, entry in enumerate(entries):
            identity = self._id_of(entry)
            if (earlier := first.setdefault(identity, number)) != number:
                also = f"the image id {identity} is that of {entries.where(earlier)}, too"
                raise DataCorruptError(f"{entries.where(number)}: {also}")
        return samples

    def references(self, split: str) -> References | None:
        """The references of all images of a split; None where there are none, as of a test whose
        references only a server has. DataCorruptError where they are of other images."""
        entries = self.evaluated(split).annotations
        ids: list[Any] = [self._id_of(entry) for entry in entries]
        path = (self._h.references or {}).get(split)
        if path is None:
            said: list[Any] = [entry.get("caption") for entry in entries]
            if not any(said):
                return None
            if not all(said):
                where = entries.where(next(n for n, texts in enumerate(said) if not texts))
                raise DataCorruptError(f"{where}: no caption, other images of {split!r} have some")
            return References(dict(zip(ids, said, strict=True)))
        found = read_references(path)
        for number, identity in enumerate(ids):
            if identity not in found.captions:
                told = f"image id {identity} is not in the references {path}"
                raise DataCorruptError(f"{entries.where(number)}: {told}")
        if more := sorted(found.captions.keys() - set(ids)):
            told = f"{len(more)} images, the first is {more[0]}, are not in split {split!r}"
            raise DataCorruptError(f"{path}: {told}")
        return found

    def _id_of(self, entry: Annotation) -> int | None:
        """An image's id, or None if it has none."""
        if "img_id" in entry:
            return entry["img_id"] if is_integer(entry["img_id"]) else None
        digits = PurePosixPath(entry["image"]).stem.rpartition("_")[2]
        # Digits of other scripts are numbers to Python, too.
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        return number if number is not None and number <= LARGEST else None


def read_references(path: str | Path) -> References:
    """Read references in COCO's layout: of each image at least one text with a word."""
    images, annotations = tables(path, "images", "annotations")
    if not images.rows:
        raise DataCorruptError(f"{path}: no images")
    ids = images.unique_ids()
    named = images.column("domain", lambda v: v is None or is_text(v), "a text")
    rows = zip(ids.tolist(), named, strict=True)
    domains = {image: name for image, name in rows if name is not None}
    if domains and len(domains) < len(ids):
        raise DataCorruptError(f"{path}: some images name their domain, others don't")
    texts = annotations.column("caption", lambda v: is_text(v) and bool(v.strip()), "a text")
    captions: dict[int, list[str]] = {image: [] for image in ids.tolist()}
    for place, text in zip(annotations.members("image_id", ids, "image"), texts, strict=True):
        captions[int(ids[place])].append(text)
    if silent := [image for image, said in captions.items() if not said]:
        raise DataCorruptError(f"{path}: image {silent[0]} has no caption")
    return References(captions, domains)


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, list) and bool(texts) and all(is_text(t) and t.strip() for t in texts)


def _no_id(entry: Annotation) -> str:
    if "img_id" in entry:
        return f"img_id is {shortened(entry['img_id'])}, expected an integer"
    return f"no integer behind the last _ of the image's name {shortened(entry['image'])}"
