"""Questions about pictures, their answers, and the list of answers to choose from.

Source: docs/papers/albef.md, sections 3.8, 4.3 and 6; salesforce/ALBEF@b9727e4
`dataset/vqa_dataset.py`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.annotations import Annotation
from shared.data.image_text.pairs import AnnotatedSamples, ImageTextBatch, ImageTextData, Keys
from shared.data.readers.files import is_integer, is_text, read_json, shortened
from shared.data.text.cleaning import TEXT_RULES, TextRules
from shared.data.text.wordpiece import WordPiece

KINDS = ("answer_type", "question_type")  # as VQA's annotations call them


class VQAData(ImageTextData):
    """Annotations {image, question, answer, question_id, dataset?, answer_type?, question_type?}.

    `answer` is a list, what each of several people said (VQA has ten), or one text (Visual Genome);
    `question_id` is an integer and only evaluation needs it, as only training needs `answer`.

    Training batch: `images`, `indices`, `input_ids`, `attention_mask` (B, L) int64 of the
    questions, `answer_counts` (B,) int64, and the different answers of each question, those of a
    question in a row: `answer_ids`, `answer_mask` (A, M) int64, `answer_weights` (A,) float32. A
    weight is the share of people who gave the answer, or `single_answer_weight`.

    Evaluation batch: `images`, `indices`, `input_ids`, `attention_mask`, `question_ids` (B,) int64,
    `kinds`, a list of B lists of the kinds of question that an entry names, and `answers`, a list
    of B lists of texts, where the split has them.

    Training entries without an answer are left out. `answer_list` is a JSON list of the answers to
    choose from; questions longer than `max_words` or `max_text_tokens` ([CLS] included, null keeps
    all) in "train" and "eval" are cut.
    """

    required: ClassVar[Mapping[str, Any]] = {"image": str, "question": str}

    def __init__(
        self,
        answer_list: str,
        single_answer_weight: float = 0.5,
        max_text_tokens: Mapping[str, int | None] | None = None,
        max_words: Mapping[str, int] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.token_limits = {"train": 25, "eval": None} | dict(max_text_tokens or {})
        self.word_limits = {"train": 30, "eval": 50} | dict(max_words or {})

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """The answers to choose from, see `read_answers`, and their ids, with [CLS] and [SEP]."""
        answers = read_answers(Path(self._h.answer_list))
        rows = zip(*(values.tolist() for values in self.tokenizer.answers(answers)), strict=True)
        return {text: ids[: sum(m)] for text, (ids, m) in zip(answers, rows, strict=True)}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        _ = self.answers  # so that a bad list is refused before training

    def problem(self, entry: Annotation, split: str) -> str | None:
        answer = entry.get("answer")
        if split == "train":
            if not answer:
                return "no answer"
            if not isinstance(answer, str) and not _is_texts(answer):
                return f"its answer is {shortened(answer)}, expected a text or a list of texts"
            return None
        if not is_integer(number := entry.get("question_id")):
            return f"question_id is {shortened(number)}, expected an integer"
        if answer and not _is_texts(answer):
            return f"its answer is {shortened(answer)}, expected a list of what several people said"
        kinds = [entry[kind] for kind in KINDS if kind in entry]
        if not _is_texts(kinds):
            return f"{' and '.join(KINDS)} must be texts, got {shortened(kinds)}"
        return None

    def evaluated(self, split: str) -> AnnotatedSamples:
        """All questions of a split; DataCorruptError also where a question_id occurs twice, or
        some questions have answers and others have not."""
        if split in self._evaluated:
            return self._evaluated[split]
        samples, entries = super().evaluated(split), self.entries(split)
        first: dict[int, int] = {}
        answered: dict[bool, int] = {}
        for number, entry in enumerate(entries):
            identity = entry["question_id"]
            if (earlier := first.setdefault(identity, number)) != number:
                also = f"question_id {identity} is that of {entries.where(earlier)}, too"
                raise DataCorruptError(f"{entries.where(number)}: {also}")
            answered.setdefault(bool(entry.get("answer")), number)
        if len(answered) == 2:
            some, none = (entries.where(answered[has]) for has in (True, False))
            told = f"{some} has answers, {none} has none"
            raise DataCorruptError(f"{told}: give split {split!r} all answers or none")
        return samples

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        use = "eval" if keys is None else "train"
        questions = [entry["question"] for entry in entries]
        words, tokens = self.word_limits[use], self.token_limits[use]
        batch = tokenised_questions(self.tokenizer, questions, words, tokens, self.rules)
        if keys is not None:
            return batch | self._targets(entries)
        batch["question_ids"] = torch.tensor([entry["question_id"] for entry in entries])
        batch["kinds"] = [[entry[kind] for kind in KINDS if kind in entry] for entry in entries]
        answers = [entry.get("answer") for entry in entries]
        return batch | ({"answers": answers} if all(answers) else {})

    def _targets(self, entries: Sequence[Annotation]) -> ImageTextBatch:
        single = float(self._h.single_answer_weight)
        weights = [answer_weights(entry["answer"], single) for entry in entries]
        ids, mask = self.tokenizer.answers([text for answers in weights for text in answers])
        values = [weight for answers in weights for weight in answers.values()]
        return {
            "answer_ids": ids,
            "answer_mask": mask,
            "answer_counts": torch.tensor([len(answers) for answers in weights]),
            "answer_weights": torch.tensor(values),
        }


def answer_weights(answer: str | list[str], single: float) -> dict[str, float]:
    """The weight of each different answer, in the order of first appearance: the share of people
    who gave it, or `single` where there is one text."""
    if isinstance(answer, str):
        return {answer: single}
    return {text: count / len(answer) for text, count in Counter(answer).items()}


def tokenised_questions(
    tokenizer: WordPiece,
    questions: Iterable[str],
    max_words: int,
    max_tokens: int | None,
    rules: TextRules = TEXT_RULES["albef"],
) -> ImageTextBatch:
    """`input_ids` and `attention_mask` (B, L) int64 of questions, which are cleaned."""
    cleaned = [rules.clean_question(question, max_words) for question in questions]
    ids, mask = tokenizer.batch(cleaned, max_tokens)
    return {"input_ids": ids, "attention_mask": mask}


def read_answers(path: Path) -> list[str]:
    """The texts of a JSON list; refuses an empty one, and texts that are blank or repeated."""
    kind = "a JSON list of texts, the answers to choose from"
    try:
        answers = read_json(path)
    except DataNotFoundError as error:
        raise DataNotFoundError(f"{error}. It is {kind}") from None
    if not answers or not _is_texts(answers):
        raise DataCorruptError(f"{path}: expected {kind}, got {shortened(answers)}")
    first: dict[str, int] = {}
    for number, text in enumerate(answers):
        if not text.strip():
            raise DataCorruptError(f"{path}, entry {number}: a blank answer")
        if (place := first.setdefault(text, number)) != number:
            raise DataCorruptError(f"{path}, entry {number}: {shortened(text)} is entry {place}")
    return answers


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))
