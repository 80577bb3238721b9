"""Answers to questions about images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shared.data.images import FolderImages
from shared.data.text.cleaning import clean_question
from shared.files import own_folder
from shared.predict.inputs import PredictError, Predictor, batches, tokenised
from shared.predict.sheets import Cell, Section, percent, sheet, thumbnail
from shared.predict.tables import refuse_not_finite, write_csv, write_picture

MAX_WORDS = 50  # of a question, as in evaluation


class Answering(Protocol):
    """A model that answers questions.

    A batch has `images` (R, 3, S, S) and questions, `input_ids` and `attention_mask` (r R, L), r
    consecutive ones for each image; each answer comes with its probability.
    """

    def answer(self, batch: dict[str, Any]) -> list[tuple[str, float]]: ...


def answers_questions(module: object) -> bool:
    """Whether a module is `Answering`."""
    return hasattr(module, "answer")


def predict_answers(
    predictor: Predictor,
    images: FolderImages,
    base: Path,
    output: Path,
    questions: Sequence[str],
    batch_size: int,
    sheet_images: int,
) -> list[Path]:
    """Writes answers.csv, of each image and question, and contact_sheet.png; returns their paths.

    Raises:
        PredictError: a model that answers no questions, or questions that it cannot read.
    """
    model: Answering = predictor.module
    if not answers_questions(model):
        raise PredictError(f"questions are given, but {type(model).__name__} answers none")
    ids, mask = tokenised(predictor, questions, "question", clean_question, MAX_WORDS)
    answers: list[tuple[str, str, str, float]] = []
    shown: list[list[Cell]] = [[] for _ in questions]
    per_question = max(1, sheet_images // len(questions))
    for found in batches(images, batch_size):
        views = predictor.views(found.pixels)
        given = _answers(model, views, ids, mask, batch_size)
        for path, pixels, replies in zip(found.paths, found.pixels, given, strict=True):
            name = path.relative_to(base).as_posix()
            refuse_not_finite([sure for _, sure in replies], path)
            for question, cells, (reply, sure) in zip(questions, shown, replies, strict=True):
                answers.append((name, question, reply, sure))
                if len(cells) < per_question:
                    cells.append(Cell(thumbnail(pixels), reply, f"{percent(sure)}  {name}"))
    sections = [Section(q, cells) for q, cells in zip(questions, shown, strict=True)]
    own_folder(output)
    page = sheet(sections[: max(1, sheet_images)])
    write_picture(output / "contact_sheet.png", page)
    columns = ["path", "question", "answer", "probability"]
    return [write_csv(output / "answers.csv", columns, answers), output / "contact_sheet.png"]


@torch.inference_mode()
def _answers(
    model: Answering, views: Tensor, ids: Tensor, mask: Tensor, pairs: int
) -> list[list[tuple[str, float]]]:
    """For each of R images the answer to each question (Q, L), about `pairs` pairs at a time."""
    given: list[list[tuple[str, float]]] = [[] for _ in views]
    questions = max(1, pairs // len(views))
    for some, their_mask in zip(ids.split(questions), mask.split(questions), strict=True):
        batch = {
            "images": views,
            "input_ids": some.repeat(len(views), 1).to(views.device),
            "attention_mask": their_mask.repeat(len(views), 1).to(views.device),
        }
        replies = model.answer(batch)
        for number, own in enumerate(given):
            own += replies[number * len(some) : (number + 1) * len(some)]
    return given
