"""Referring expressions: RefCOCO+ in the layout of REFER, and proposed boxes (docs/papers/albef.md,
section 6).

    refcoco+_{train,val,test}.json   [{image, text, ref_id}], one entry for each expression
    refs(unc).p                      REFER's pickle: [{ref_id, ann_id, image_id, split, ...}]
    instances.json                   COCO: images with height and width, annotations with bbox
    dets.json                        {image id: [[x, y, width, height, ...], ...]}

Training reads the first alone: pairs of an image and a text, without boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from shared.data.errors import DataCorruptError
from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import ImageTextBatch, ImageTextData, Keys, image_id
from shared.data.readers.files import is_integer, is_number, is_text, read_json, shortened
from shared.data.readers.instances import Table, tables
from shared.data.readers.plain_pickle import read_plain_pickle


@dataclass(frozen=True)
class Reference:
    """What an expression refers to: `box` [x, y, width, height] and `proposals` (P, 4) in pixels of
    an image of `size` (height, width); `split` as REFER has it."""

    box: tuple[float, ...]
    size: tuple[int, int]
    split: str
    proposals: Tensor


class References:
    """The references of REFER by `ref_id`, with the proposals of their images."""

    def __init__(self, refs: str | Path, instances: str | Path, proposals: str | Path) -> None:
        self.paths = refs, instances, proposals
        self._refs = Table(str(refs), read_plain_pickle(refs)).by_id("ref_id")
        images, annotations = tables(instances, "images", "annotations")
        self._images = images.by_id()
        self._boxes: dict[Any, Any] = {n: a.get("bbox") for n, a in annotations.by_id().items()}
        self._proposals = read_json(proposals)
        if not isinstance(self._proposals, dict):
            raise DataCorruptError(f"{proposals}: expected an object, image id -> boxes")

    def __getitem__(self, ref_id: int) -> Reference:
        """Raises DataCorruptError, which names the reference, if anything of it is missing."""
        refs, instances, proposals = self.paths
        ref = self._refs.get(ref_id)
        if ref is None:
            raise DataCorruptError(f"ref_id {ref_id} is not in {refs}")
        kinds = {"ann_id": is_integer, "image_id": is_integer, "split": is_text}
        missing = [key for key, is_right in kinds.items() if not is_right(ref.get(key))]
        if missing:
            raise DataCorruptError(f"ref_id {ref_id} in {refs} lacks {', '.join(missing)}")
        box: Any = self._boxes.get(ref["ann_id"])
        image = self._images.get(ref["image_id"], {})
        size: Any = image.get("height"), image.get("width")
        boxes, own = self._proposals.get(str(ref["image_id"])), f"image {ref['image_id']}"
        if not _is_box(box):
            problem = f"annotation {ref['ann_id']} has no bbox in {instances}"
        elif not all(is_integer(side) and is_number(side) and side > 0 for side in size):
            problem = f"{own} with height and width is not in {instances}"
        elif not boxes:
            problem = f"proposals of {own}: {proposals} has none"
        elif not isinstance(boxes, list) or not all(map(_is_box, boxes)):
            problem = f"proposals of {own}: {proposals} is no list of [x, y, width, height]"
        else:
            proposed = torch.tensor([proposal[:4] for proposal in boxes], dtype=torch.float32)
            return Reference(tuple(box[:4]), size, ref["split"], proposed)
        raise DataCorruptError(f"ref_id {ref_id}: {problem}")


class ReferringData(ImageTextData):
    """Expressions and their images; for evaluation, the boxes.

    Training batch: `images`, `indices`, `input_ids`, `attention_mask` (B, L) and `image_ids` (B,)
    int64, equal for expressions of the same image (the same file name).

    Evaluation batch: also `ref_ids` (B,); `boxes` (B, 4), what is meant, [x, y, width, height];
    `sizes` (B, 2), height and width of the image that the boxes belong to; `proposals`, a list of
    (P, 4); `splits`, a list of names.

    Texts are cleaned as `text_rules` say, padded to the longest, and not cut but by `max_words`.
    Those without a word are left out of training; evaluation refuses them, and those whose `ref_id`
    has no reference, box or proposals.
    """

    required: ClassVar[Mapping[str, Any]] = {"image": str, "text": str}

    def __init__(
        self, refs: str, instances: str, proposals: str, max_words: int = 30, **base: Any
    ) -> None:
        super().__init__(**base)

    @cached_property
    def references(self) -> References:
        return References(self._h.refs, self._h.instances, self._h.proposals)

    def problem(self, entry: Annotation, split: str) -> str | None:
        if not self.expression(entry):
            return f"no word in its text {shortened(entry['text'])}"
        if split == "train":
            return None
        if type(entry.get("ref_id")) is not int:
            return f"ref_id is {shortened(entry.get('ref_id'))}, expected an integer"
        try:
            _ = self.references[entry["ref_id"]]
        except DataCorruptError as error:
            return str(error)
        return None

    def expression(self, entry: Annotation) -> str:
        return self.rules.clean_caption(entry["text"], self._h.max_words)

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        ids, mask = self.tokenizer.batch([self.expression(entry) for entry in entries])
        batch: ImageTextBatch = {"input_ids": ids, "attention_mask": mask}
        names = [PurePosixPath(entry["image"]).name for entry in entries]
        batch["image_ids"] = torch.tensor([image_id({"image": name}) for name in names])
        if keys is not None:
            return batch
        found = [self.references[entry["ref_id"]] for entry in entries]
        return batch | {
            "ref_ids": torch.tensor([entry["ref_id"] for entry in entries]),
            "boxes": torch.tensor([reference.box for reference in found], dtype=torch.float32),
            "sizes": torch.tensor([reference.size for reference in found]),
            "proposals": [reference.proposals for reference in found],
            "splits": [reference.split for reference in found],
        }


def _is_box(value: Any) -> bool:
    numbers = value[:4] if isinstance(value, list | tuple) else ()
    return len(numbers) == 4 and all(map(is_number, numbers)) and min(numbers[2:]) >= 0
