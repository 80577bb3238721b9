"""Videos with texts: retrieval on MSR-VTT and DiDeMo, and questions about videos.

    {train,val,test}.jsonl   of MSR-VTT and DiDeMo, a line {clip_name, caption} for each caption
    {train,val,test}.jsonl   of MSRVTT-QA and MSVD-QA, a line {question, answer, video_id,
                             answer_type?}; train_ans2label.json, {answer: its number}

Source: docs/papers/blip.md, sections 6 and 7.2; salesforce/BLIP@056a169 `data/video_dataset.py`;
docs/papers/alpro.md, section 6; salesforce/ALPRO@4ff6163 `src/datasets/dataset_video_qa.py`,
`dataset_video_retrieval.py`.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import ImageTextBatch, ImageTextData, Keys, PairData
from shared.data.image_text.vqa import read_answers, tokenised_questions
from shared.data.readers.files import is_integer, is_text, read_json, shortened


class ClipPairs(PairData):
    """Videos `<clip_name><suffix>` below `image_root`, each with the captions of all its lines, of
    which training draws one at each access. Batch: see `PairData` and, for `frames`,
    `ImageTextData`."""

    required: ClassVar[Mapping[str, Any]] = {"clip_name": str, "caption": str | list[str]}

    def __init__(self, frames: int = 8, suffix: str = ".mp4", **base: Any) -> None:
        super().__init__(frames=frames, **base)
        self._lines: dict[str, dict[str, list[int]]] = {}

    def clip(self, entry: Annotation) -> str:
        """The name of an entry's video."""
        return entry["clip_name"]

    def image_names(self, entry: Annotation) -> list[str]:
        return [self.clip(entry) + self._h.suffix]

    def samples_among(self, split: str, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first line of each video."""
        lines: dict[str, list[int]] = {}
        for number in members.tolist():
            lines.setdefault(self.clip(self.entries(split)[number]), []).append(number)
        # Most videos of the web have one: only those of several are worth the memory.
        self._lines[split] = {name: rows for name, rows in lines.items() if len(rows) > 1}
        return np.array([rows[0] for rows in lines.values()])

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        return super().texts([self._whole(entry, split) for entry in entries], keys, split)

    def _whole(self, entry: Annotation, split: str) -> Annotation:
        """An entry with the captions of all lines about its video."""
        rows = self._lines.get(split, {}).get(self.clip(entry), [])
        others = [self.entries(split)[row] for row in rows if row != entry["index"]]
        captions = [text for line in (entry, *others) for text in self.captions(line)]
        return entry | {"caption": captions, "clip_name": self.clip(entry)}


class ClipQuestions(ImageTextData):
    """Questions about videos `<video_id><suffix>` below `image_root`.

    With an `answer_list`, a JSON list of texts or {text: its number}, batches hold `labels` (B,)
    int64, the right answer's place among `answers`, or -1 of one that is not there; training
    entries with such a one are left out.

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
        answer_list: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(frames=frames, **base)

    @cached_property
    def answers(self) -> list[str] | None:
        """The texts of `answer_list` in the order of their numbers; None without one."""
        given = self._h.answer_list
        return None if given is None else read_numbered_answers(Path(given))

    @cached_property
    def labels(self) -> dict[str, int]:
        """The number of each answer."""
        return {text: number for number, text in enumerate(self.answers or [])}

    def image_names(self, entry: Annotation) -> list[str]:
        return [entry["video_id"] + self._h.suffix]

    def problem(self, entry: Annotation, split: str) -> str | None:
        for name in ("answer", "answer_type"):
            if not is_text(text := entry.get(name, "of no kind")) or not text.strip():
                return f"{name} is {shortened(text)}, expected a text"
        if split == "train" and self.answers and entry["answer"] not in self.labels:
            return f"its answer {shortened(entry['answer'])} is not in {self._h.answer_list}"
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
            **({"labels": self._labels(entries)} if self.answers else {}),
        }

    def _labels(self, entries: Sequence[Annotation]) -> torch.Tensor:
        return torch.tensor([self.labels.get(entry["answer"], -1) for entry in entries])


def read_numbered_answers(path: Path) -> list[str]:
    """The texts of a JSON list, or of {text: number} with the numbers 0, 1, ..., in that order."""
    found = read_json(path)
    if not isinstance(found, dict):
        return read_answers(path)
    texts = {number: text for text, number in found.items() if is_integer(number)}
    if not found or sorted(texts) != list(range(len(found))) or not all(map(is_text, found)):
        told = f"{path}: expected {{answer: number}} with the numbers 0, 1, ..., each once"
        raise DataCorruptError(f"{told}, got {shortened(found)}")
    return [texts[number] for number in range(len(texts))]
