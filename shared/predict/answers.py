"""Answers to questions about images or videos."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.predict.inputs import Pictures, PredictError, Predictor, refuse_not_finite, tokenised
from shared.predict.outputs import Cell, Output, Table, percent, sheet

MAX_WORDS = 50  # of a question, as in evaluation


def predict_answers(
    predictor: Predictor,
    images: Pictures,
    questions: Sequence[str],
    batch_size: int,
    sheet_images: int,
) -> Iterator[Output]:
    """Yield answers.csv, of each image and question, and contact_sheet.png.

    The model's `answer` takes a batch of `images` (R, 3, S, S), or videos (R, F, 3, S, S), and
    questions, `input_ids` and `attention_mask` (r R, L), r consecutive ones for each image; each
    answer has its probability.
    """
    model = predictor.module
    if not hasattr(model, "answer"):
        raise PredictError(f"questions are given, but {type(model).__name__} answers none")
    clean = predictor.rules.clean_question
    ids, mask = tokenised(predictor, questions, "question", clean, MAX_WORDS)
    answers: list[tuple[str, str, str, float]] = []
    shown: list[list[Cell]] = [[] for _ in questions]
    per_question = max(1, sheet_images // len(questions))
    for indices, pictures in images.batches(batch_size):
        given = answers_of(model, predictor.views(pictures), ids, mask, batch_size)
        for index, pixels, replies in zip(indices, pictures, given, strict=True):
            name = images.name(index)
            refuse_not_finite([sure for _, sure in replies], images.path(index))
            for question, cells, (reply, sure) in zip(questions, shown, replies, strict=True):
                answers.append((name, question, reply, sure))
                if len(cells) < per_question:
                    picture = images.thumbnail(index, pixels)
                    cells.append(Cell(picture, reply, f"{percent(sure)}  {name}"))
    yield "answers.csv", Table(["path", "question", "answer", "probability"], answers)
    sections = list(zip(questions, shown, strict=True))
    yield "contact_sheet.png", sheet(sections[: max(1, sheet_images)], headline=predictor.accuracy)


@torch.inference_mode()
def answers_of(
    model: Any, views: Tensor, ids: Tensor, mask: Tensor, pairs: int
) -> list[list[tuple[str, float]]]:
    """For each of R images the answer to each question (Q, L), about `pairs` pairs at a time, of
    a question with a frame where they are videos."""
    given: list[list[tuple[str, float]]] = [[] for _ in views]
    questions = max(1, pairs // views.shape[:-3].numel())  # each about a frame
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
