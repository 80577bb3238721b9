"""ALPRO's pre-training pairs: videos of the web, and whole batches of pictures in between.

    webvid.csv      as WebVid is distributed: `videoid`, `page_dir`, `name`, the caption
    train.json      [{video_id, text, txt_len}], the columns of the official tables
    cc3m.json       [{image, caption}], the pictures; or shards of either, see `ShardPairData`

Source: docs/papers/alpro.md, sections 3.9 and 6; salesforce/ALPRO@4ff6163
`src/datasets/dataset_pretrain_sparse.py`, `src/datasets/dataloader.py:MetaLoader`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.data.image_text.annotations import Annotation
from shared.data.image_text.clips import ClipPairs
from shared.data.image_text.pairs import ImageTextBatch, ImageTextBatches, PairData
from shared.data.image_text.shards import ShardPairData
from shared.data.loading.loader import ResumableLoader
from shared.data.loading.streams import Alternating
from shared.data.readers.files import is_text, shortened
from shared.nn.building import build

NAMES = ("clip_name", "videoid", "video_id")
CAPTIONS = ("caption", "name", "text")
LONGEST = 80  # `txt_len` from which on the official code leaves a pair out


class WebPairs(ClipPairs, ShardPairData):
    """Videos `<page_dir>/<name><suffix>` below `image_root`, each with one caption, or in `shards`,
    and with `stills` pictures, which are shown as clips of equal frames.

    Training batch: see `ClipPairs`; with `kind`, "video" or "image", of the whole batch.

    Args:
        stills: `_target_` of `PairData` of pictures and its arguments; null for videos alone.
        group: batches in a row of one kind, those of an optimiser's step.
    """

    required: ClassVar[Mapping[str, Any]] = {}  # `problem` looks for one of several names

    def __init__(
        self,
        stills: Mapping[str, Any] | None = None,
        group: int = 1,
        shards: str | Sequence[str] | None = None,
        **clips: Any,
    ) -> None:
        super().__init__(shards=shards, **clips)
        self.stills = None if stills is None else build(stills, PairData)

    def clip(self, entry: Annotation) -> str:
        name = str(first_of(entry, NAMES))
        return f"{folder}/{name}" if (folder := entry.get("page_dir")) else name

    def captions(self, entry: Annotation) -> list[str]:
        return super().captions({"caption": first_of(entry, CAPTIONS)})

    def problem(self, entry: Annotation, split: str) -> str | None:
        name, caption = first_of(entry, NAMES), first_of(entry, CAPTIONS)
        folder, length = entry.get("page_dir", ""), entry.get("txt_len", 0)
        if not is_text(folder) or not (type(name) is int or is_text(name)):
            return f"its video is {shortened(name)}; expected one of {', '.join(NAMES)}"
        if not ((isinstance(caption, list) and all(map(is_text, caption))) or is_text(caption)):
            return f"its caption is {shortened(caption)}; expected one of {', '.join(CAPTIONS)}"
        if type(length) is int and length >= LONGEST:
            return f"txt_len is {length}; {LONGEST} and more are left out"
        return super().problem(entry, split)

    def samples_among(self, split: str, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """All lines in training, where each is of a video of its own."""
        return members if split == "train" else super().samples_among(split, members)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.stills is not None:
            self.stills.trainer = self.trainer
            _ = self._alternating()

    def train_dataloader(self) -> ResumableLoader:
        if self.stills is None:
            return super().train_dataloader()
        parts = {"video": self.training_batches(), "image": self.stills.training_batches()}
        batches = AlternatingBatches(parts, self._h.frames)
        return ResumableLoader(batches, self._alternating(), self._h.num_workers)

    def _alternating(self) -> Alternating:
        assert self.stills is not None
        return Alternating([self.schedule(), self.stills.schedule()], self._h.seed, self._h.group)


@dataclass(frozen=True)
class AlternatingBatches:
    """Batches of the parts, by kind, that the plans of `Alternating` name; pictures are repeated as
    `frames` equal frames."""

    parts: Mapping[str, ImageTextBatches]
    frames: int

    def __getitems__(self, plan: tuple[int, Any]) -> ImageTextBatch:
        number, own = plan
        kind, batches = list(self.parts.items())[number]
        batch = batches.__getitems__(own)
        if (images := batch["images"]).ndim == 4:
            batch["images"] = images[:, None].expand(-1, self.frames, -1, -1, -1)
        return batch | {"kind": kind}


def first_of(entry: Annotation, names: tuple[str, ...]) -> Any:
    """The value of the first of the names that an entry has."""
    return next((entry[name] for name in names if name in entry), None)
