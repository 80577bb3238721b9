"""Visual question answering: a decoder that reads the question writes answers, or ranks a list.

Shapes: B questions, each about an image; A answers, those of a question in a row; N answers to
choose from; L and M tokens of questions and answers.
Source: docs/papers/blip.md, sections 3.11 and 7.4; salesforce/BLIP@056a169 `models/blip_vqa.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from methods.blip.network import grounded, opened
from shared.losses.language import smoothed_losses, text_sums
from shared.nn.generation import CachedDecoder, Generated, Generation, generate
from shared.nn.text_transformer import KeyValue
from shared.tasks.answering import (
    AnswerEvaluation,
    AnswerNetwork,
    AnswerRanking,
    most_probable,
)
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod


class VQA(ImageTextMethod):
    """Training as in the paper, and answering by rank among a closed list of answers; `write`
    answers freely.

    Args:
        vision, text: see `AnswerNetwork`; every layer of the question encoder sees the image, and
            the decoder, which has as many layers, shares nothing with it.
        bos_id, enc_id: ids of [DEC] and [ENC], which begin answers and questions.
        label_smoothing: of the answers' words, when they are ranked, too.
        k_test, candidates_per_pass: see `AnswerRanking`.
        generation: arguments of `Generation`; lengths count [DEC].
        evaluation: arguments of `AnswerEvaluation`.
        reads_padding: whether a written answer also looks at the padding of the question, as in
            the official code: it then depends on the other questions of the batch.
        answers: the list, answer -> its ids as `WordPiece.answers` makes them; None: that of the
            data, which a checkpoint keeps.
    """

    accumulates = True

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        bos_id: int,
        enc_id: int,
        label_smoothing: float,
        k_test: int,
        generation: dict[str, Any],
        candidates_per_pass: int = 1024,
        evaluation: Mapping[str, str] | None = None,
        reads_padding: bool = False,
        answers: Mapping[str, Sequence[int]] | None = None,
        **frame: Any,
    ):
        super().__init__(AnswerEvaluation(**(evaluation or {})), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = AnswerNetwork(vision, grounded(text), text["num_layers"])
        sizes = k_test, "corrected", candidates_per_pass
        self.ranking = AnswerRanking(*sizes, smoothing=label_smoothing)
        self.generation = Generation(**generation)
        if answers:
            self.choose_among(answers)

    def choose_among(self, answers: Mapping[str, Sequence[int]]) -> None:
        """Take the list of answers, each with its ids; a checkpoint keeps it."""
        bos_id = self.hparams["bos_id"]
        begun = {text: [bos_id, *ids[1:]] for text, ids in answers.items()}
        self.ranking.choose_among(begun, self.encoders.text_decoder)
        self.hparams["answers"] = begun

    def setup(self, stage: str) -> None:
        """The answers of the data replace those of a checkpoint."""
        answers = getattr(getattr(self.trainer, "datamodule", None), "answers", None)
        if answers is not None:
            self.choose_among(answers)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        answer_ids = opened(batch["answer_ids"], self.hparams["bos_id"])
        answer_mask, counts = batch["answer_mask"], batch["answer_counts"]
        places = torch.arange(len(counts), device=counts.device)
        question_of = places.repeat_interleave(counts, output_size=len(answer_ids))

        shared = [keys_values.rows(question_of) for keys_values in self.read(batch)]
        logits = self.encoders.write(answer_ids, answer_mask, shared)

        predicted = answer_mask[:, 1:].bool()
        targets = answer_ids[:, 1:][predicted]
        losses = smoothed_losses(logits, targets, self.hparams["label_smoothing"])
        sums = text_sums(losses, predicted)
        loss = (batch["answer_weights"] * sums).sum() / len(batch["images"])
        return self.total_loss({"loss_answer": loss}, {}, batch["indices"])

    def read(self, batch: ImageTextBatch) -> list[KeyValue]:
        """What the decoder sees of each question of a batch and its image."""
        ids = opened(batch["input_ids"], self.hparams["enc_id"])
        return self.encoders.read(batch["images"], ids, batch["attention_mask"])

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """(B, N) probabilities of the answers, 0 where an answer is no candidate."""
        return self.ranking.probabilities(self.encoders, self.read(batch))

    def answer(self, batch: ImageTextBatch) -> list[tuple[str, float]]:
        """The best answer to each question of a batch as in `predict_step`, and how probable it is
        among the candidates."""
        return most_probable(self.predict_step(batch, 0), self.ranking.answers)

    def write(self, batch: ImageTextBatch) -> Generated:
        """An answer to each question of a batch, ids (B, M) that begin with [DEC], padded."""
        question = self.read(batch)
        if self.hparams["reads_padding"]:
            question = [keys_values._replace(mask=None) for keys_values in question]
        network, settings = self.encoders, self.generation
        parts = network.text_decoder, network.word_head, question
        start = batch["input_ids"].new_full((len(batch["input_ids"]), 1), self.hparams["bos_id"])
        return generate(CachedDecoder(*parts, settings.max_length), start, settings)
