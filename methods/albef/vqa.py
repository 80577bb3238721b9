"""Visual question answering: a decoder learns to write answers, and ranks a given list of them.

Shapes: B questions, each about an image; A answers, those of a question in a row; N answers to
choose from; L and M tokens of questions and answers.
Source: docs/papers/albef.md, section 3.8; salesforce/ALBEF@b9727e4 `models/model_vqa.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.losses.language import text_sums, token_losses
from shared.tasks.answering import (
    AnswerEvaluation,
    AnswerNetwork,
    AnswerRanking,
    most_probable,
)
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod, images_and_texts
from shared.tasks.momentum_teacher import MomentumTeacher


class VQA(ImageTextMethod):
    """Training as in the paper, and answering by rank among a closed list of answers.

    Args:
        answers: the list, answer -> its ids as `WordPiece.answers` makes them; None: that of the
            data, which a checkpoint keeps.

    Others: see `AnswerNetwork`, `AnswerRanking`, `MomentumTeacher` and `ImageTextMethod`.
    """

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        decoder_layers: int,
        k_test: int,
        encoder_momentum: float,
        alpha: float,
        ramp: bool,
        score: str = "official",
        candidates_per_pass: int = 1024,
        answers: Mapping[str, Sequence[int]] | None = None,
        **frame: Any,
    ):
        super().__init__(AnswerEvaluation(), **frame)
        self.save_hyperparameters()
        self.encoders = AnswerNetwork(vision, text, decoder_layers)
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)
        self.ranking = AnswerRanking(k_test, score, candidates_per_pass)
        if answers:
            self.choose_among(answers)

    def choose_among(self, answers: Mapping[str, Sequence[int]]) -> None:
        """Take the list of answers, each with its ids; a checkpoint keeps it."""
        self.ranking.choose_among(answers, self.encoders.text_decoder)
        self.hparams["answers"] = {text: list(ids) for text, ids in answers.items()}

    def setup(self, stage: str) -> None:
        """The answers of the data replace those of a checkpoint."""
        answers = getattr(getattr(self.trainer, "datamodule", None), "answers", None)
        if answers is not None:
            self.choose_among(answers)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        alpha = self.momentum_encoders.weight(self, batch_idx)
        answer_ids, answer_mask = batch["answer_ids"], batch["answer_mask"]
        counts, weights = batch["answer_counts"], batch["answer_weights"]
        places = torch.arange(len(counts), device=counts.device)
        question_of = places.repeat_interleave(counts, output_size=len(answer_ids))

        question = self.encoders.read(*images_and_texts(batch))
        shared = [kv.rows(question_of) for kv in question]
        logits = self.encoders.write(answer_ids, answer_mask, shared)

        self.momentum_encoders.follow(self.encoders)
        logits_m = None
        if alpha > 0:
            teacher: Any = self.momentum_encoders.module
            with torch.no_grad():
                shared_m = [kv.rows(question_of) for kv in teacher.read(*images_and_texts(batch))]
                logits_m = teacher.write(answer_ids, answer_mask, shared_m)

        predicted = answer_mask[:, 1:].bool()
        losses = token_losses(logits, answer_ids[:, 1:][predicted], logits_m, alpha)
        loss = (weights * text_sums(losses, predicted)).sum() / len(batch["images"])
        self.log_train({"alpha": alpha})
        return self.total_loss({"loss_answer": loss}, {}, batch["indices"])

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """(B, N) probabilities of the answers, 0 where an answer is no candidate."""
        question = self.encoders.read(*images_and_texts(batch))
        return self.ranking.probabilities(self.encoders, question)

    def answer(self, batch: ImageTextBatch) -> list[tuple[str, float]]:
        """The best answer to each question of a batch as in `predict_step`, and how probable it is
        among the candidates."""
        return most_probable(self.predict_step(batch, 0), self.ranking.answers)
