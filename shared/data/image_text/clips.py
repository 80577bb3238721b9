"""Videos with texts, to be evaluated on: retrieval on MSR-VTT, and questions about videos.

    msrvtt_test.jsonl   a line {clip_name, caption} for each of 1,000 videos
    test.jsonl          of MSRVTT-QA and MSVD-QA, a line {question, answer, video_id, answer_type?}

Source: docs/papers/blip.md, sections 6 and 7.2; salesforce/BLIP@056a169 `data/video_dataset.py`;
salesforce/ALPRO@4ff6163 `src/datasets/dataset_video_qa.py` (questions).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import ImageTextBatch, ImageTextData, Keys, PairData
from shared.data.image_text.vqa import tokenised_questions
from shared.data.readers.files import is_text, shortened


class ClipPairs(PairData):
    """Videos `<clip_name><suffix>` below `image_root`, each with its caption. Batch: see `PairData`
    and, for `frames`, `ImageTextData`."""

    required: ClassVar[Mapping[str, Any]] = {"clip_name": str, "caption": str | list[str]}

    def __init__(self, frames: int = 8, suffix: str = ".mp4", **base: Any) -> None:
        super().__init__(frames=frames, **base)

    def image_names(self, entry: Annotation) -> list[str]:
        return [entry["clip_name"] + self._h.suffix]


class ClipQuestions(ImageTextData):
    """Questions about videos `<video_id><suffix>` below `image_root`.

    Batch: `images` (B, F, 3, S, S), `indices`; `input_ids`, `attention_mask` (B, L) int64 of the
    questions, cut to `max_words` and `max_text_tokens`, [CLS] included; `question_ids` (B,) int64,
    the entries' numbers; `answers`, a list of B lists of the one right text, and `kinds`, a list of
    B lists, of the entry's `answer_type`, if any.
    """

    required: ClassVar[Mapping[str, Any]] = {"video_id": str, "question": str, "answer": str}

    def __init__(
        self,
        frames: int = 16,
        suffix: str = ".mp4",
        max_text_tokens: int | None = 35,
        max_words: int = 50,
        **base: Any,
    ) -> None:
        super().__init__(frames=frames, **base)

    def image_names(self, entry: Annotation) -> list[str]:
        return [entry["video_id"] + self._h.suffix]

    def problem(self, entry: Annotation, split: str) -> str | None:
        for name in ("answer", "answer_type"):
            if not is_text(text := entry.get(name, "of no kind")) or not text.strip():
                return f"{name} is {shortened(text)}, expected a text"
        return None

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        h, questions = self._h, [entry["question"] for entry in entries]
        kinds = [entry.get("answer_type") for entry in entries]
        limits = h.max_words, h.max_text_tokens
        return {
            **tokenised_questions(self.tokenizer, questions, *limits, self.rules),
            "question_ids": torch.tensor([entry["index"] for entry in entries]),
            "answers": [[entry["answer"]] for entry in entries],
            "kinds": [[] if kind is None else [kind] for kind in kinds],
        }
