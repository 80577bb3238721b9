"""Visual question answering: a decoder learns to write answers, and ranks a given list of them.

Shapes: B questions, each about an image; A answers, those of a question in a row; N answers to
choose from, k candidates of a question; L and M tokens of questions and answers; S predicted
tokens, V words.
Source: docs/papers/albef.md, section 3.8; salesforce/ALBEF@b9727e4 `models/model_vqa.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.albef.training import Batch, MomentumDistilled
from shared.evaluation.vqa import VQAEvaluation, accuracies, write_results
from shared.nn.text_transformer import KeyValue, LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)
RESULTS = "vqa_result.json"


class AnswerNetwork(nn.Module):
    """Reads an image and a question, and writes an answer. All of it has a momentum copy.

    Args:
        vision: arguments of `VisionTransformer`.
        text: arguments of `TextTransformer` but `context_width`; of the question encoder, whose
            upper layers look at the image. The decoder has the same sizes.
        decoder_layers: of the decoder, each of which looks at the question.
    """

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], decoder_layers: int):
        super().__init__()
        self.visual_encoder = VisionTransformer(**vision)
        self.text_encoder = TextTransformer(**text, context_width=self.visual_encoder.embed_dim)
        width = self.text_encoder.width
        decoder = {**text, "num_layers": decoder_layers, "cross_attention_from": 0}
        self.text_decoder = TextTransformer(**decoder, context_width=width)
        self.word_head = LanguageHead(text["vocab_size"], width)

    def read(self, images: Tensor, ids: Tensor, mask: Tensor) -> list[KeyValue]:
        """Images (B, 3, S, S) and questions (B, L) -> what the decoder attends to, B rows."""
        context = self.text_encoder.project(self.visual_encoder(images))
        states = self.text_encoder(ids, mask, context)
        return self.text_decoder.project(states, mask=mask)

    def write(
        self, ids: Tensor, mask: Tensor, question: Sequence[KeyValue], first: int = 1
    ) -> Tensor:
        """Logits (S, V) of tokens `first`, `first` + 1, ... of each answer, row after row.

        Each is predicted from the tokens before it; padding is not predicted.

        Args: ids, mask (A, M); question: of A rows, or of fewer, each for as many answers.
        """
        hidden = self.text_decoder(ids, mask, question, causal=True)
        predicted = hidden[:, first - 1 : -1][mask[:, first:].bool()]
        return self.word_head(predicted, self.text_decoder.embeddings.word)


def token_losses(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """(S,) losses: (1 - alpha) cross-entropy + alpha distillation. Logits (S, V), targets (S,)."""
    log_probs = logits.float().log_softmax(dim=-1)
    losses = F.nll_loss(log_probs, targets, reduction="none")
    if teacher_logits is None:
        return losses
    teacher = teacher_logits.detach().float().softmax(dim=-1)
    return (1 - alpha) * losses - alpha * (teacher * log_probs).sum(dim=-1)


def answer_sums(values: Tensor, mask: Tensor) -> Tensor:
    """(A,) sums of the values (S,) of each answer's tokens; mask (A, M) of those predicted."""
    rows = mask.bool().nonzero()[:, 0]
    return values.new_zeros(len(mask)).index_add(0, rows, values)


class VQA(MomentumDistilled):
    """Training as in the paper, and answering by rank among a closed list of answers.

    Args:
        vision, text, decoder_layers: see `AnswerNetwork`.
        k_test: k; so many candidates, the most probable by their first token, are scored in full.
        score: "official" counts the first token twice; "corrected" once, which is the probability.
        candidates_per_pass: this many pass the decoder at a time.
        answers: the list, answer -> its ids as `WordPiece.answers` makes them; None: that of the
            data, which a checkpoint keeps.
        frame: see `MomentumDistilled`.
    """

    predicts = "probabilities"
    encoders: AnswerNetwork
    answer_ids: Tensor
    answer_mask: Tensor

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        decoder_layers: int,
        k_test: int,
        score: str = "official",
        candidates_per_pass: int = 1024,
        answers: Mapping[str, Sequence[int]] | None = None,
        **frame: Any,
    ):
        if score not in ("official", "corrected"):
            raise ValueError(f'score must be "official" or "corrected", got {score!r}')
        super().__init__(AnswerNetwork(vision, text, decoder_layers), **frame)
        self.save_hyperparameters()
        self.k_test, self.candidates_per_pass = k_test, candidates_per_pass
        self.first_token_weight = 2 if score == "official" else 1
        self.answers: list[str] = []
        # They travel as hyperparameters, since their number decides the shape.
        for name in ("answer_ids", "answer_mask"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.long), persistent=False)
        if answers:
            self.choose_among(answers)
        self.evaluation = VQAEvaluation()

    def choose_among(self, answers: Mapping[str, Sequence[int]]) -> None:
        """Takes the list of answers, each with its ids.

        Raises:
            ValueError: fewer answers than `k_test`, or ids beyond the vocabulary.
        """
        if len(answers) < self.k_test:
            raise ValueError(
                f"k_test={self.k_test} is more than the {len(answers)} answers to choose from: "
                "lower method.k_test, or use a longer answer list"
            )
        words = self.encoders.text_decoder.embeddings.word.num_embeddings
        if (largest := max(max(ids) for ids in answers.values())) >= words:
            raise ValueError(
                f"an answer has the id {largest}, but the model only {words} words: method."
                "text.vocab_size and data.vocab do not belong together"
            )
        self.hparams["answers"] = {text: list(ids) for text, ids in answers.items()}
        self.answers = list(answers)
        rows = [torch.tensor(ids, device=self.answer_ids.device) for ids in answers.values()]
        pad_id = self.encoders.text_decoder.pad_id
        self.answer_ids = nn.utils.rnn.pad_sequence(rows, True, pad_id)
        ones = [torch.ones_like(row) for row in rows]
        self.answer_mask = nn.utils.rnn.pad_sequence(ones, True)

    def setup(self, stage: str) -> None:
        """The answers of the data replace those of a checkpoint."""
        answers = getattr(getattr(self.trainer, "datamodule", None), "answers", None)
        if answers is not None:
            self.choose_among(answers)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        alpha = self.distillation_weight(batch_idx)
        images, ids, mask = batch["images"], batch["input_ids"], batch["attention_mask"]
        answer_ids, answer_mask = batch["answer_ids"], batch["answer_mask"]
        counts, weights = batch["answer_counts"], batch["answer_weights"]
        places = torch.arange(len(counts), device=counts.device)
        question_of = places.repeat_interleave(counts, output_size=len(answer_ids))

        question = self.encoders.read(images, ids, mask)
        shared = [kv.rows(question_of) for kv in question]
        logits = self.encoders.write(answer_ids, answer_mask, shared)

        self.update_momentum()
        logits_m = None
        if alpha > 0:
            teacher: Any = self.momentum_encoders.module
            with torch.no_grad():
                shared_m = [kv.rows(question_of) for kv in teacher.read(images, ids, mask)]
                logits_m = teacher.write(answer_ids, answer_mask, shared_m)

        predicted = answer_mask[:, 1:].bool()
        losses = token_losses(logits, answer_ids[:, 1:][predicted], logits_m, alpha)
        loss = (weights * answer_sums(losses, predicted)).sum() / len(images)
        self.log_train({"alpha": alpha})
        return self.total_loss({"loss_answer": loss}, {}, batch["indices"])

    def rank(self, question: list[KeyValue]) -> tuple[Tensor, Tensor]:
        """Candidates (B, k) of each question, places in the answer list, and their scores (B, k).

        In the order of their first tokens' probabilities; the first token of several may be one.

        Raises:
            ValueError: there are no answers to choose from.
        """
        if not self.answers:
            raise ValueError(
                "there are no answers to choose from: give `answers`, load a checkpoint that holds "
                "them, or run with a data module that has an answer list"
            )
        first_token = self.first_token_log_probs(question)
        first, candidates = first_token.topk(self.k_test, dim=1)
        rest = self.remaining_log_probs(question, candidates)
        return candidates, self.first_token_weight * first + rest

    def first_token_log_probs(self, question: list[KeyValue]) -> Tensor:
        """(B, N): of the first token of each answer, after [CLS]."""
        start = self.answer_ids[:1, :1].expand(len(question[0].key), 1)
        hidden = self.encoders.text_decoder(start, torch.ones_like(start), question, causal=True)
        words = self.encoders.text_decoder.embeddings.word
        logits = self.encoders.word_head(hidden[:, 0], words)
        return logits.float().log_softmax(dim=1)[:, self.answer_ids[:, 1]]

    def remaining_log_probs(self, question: list[KeyValue], candidates: Tensor) -> Tensor:
        """(B, k): of all tokens of each candidate after the first one, summed.

        Candidates pass by their length, so that there is little padding; all those of a question
        share its keys and values.
        """
        lengths = self.answer_mask.sum(dim=1)
        order = lengths[candidates].argsort(dim=1)
        sums = []
        for part in candidates.gather(1, order).split(
            max(1, self.candidates_per_pass // len(candidates)), dim=1
        ):
            rows = part.flatten()
            longest = int(lengths[rows].max())
            ids, mask = self.answer_ids[rows, :longest], self.answer_mask[rows, :longest]
            predicted = mask[:, 2:].bool()
            logits = self.encoders.write(ids, mask, question, first=2)
            losses = token_losses(logits, ids[:, 2:][predicted])
            sums.append(-answer_sums(losses, predicted).view_as(part))
        return torch.cat(sums, dim=1).gather(1, order.argsort(dim=1))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, N) probabilities of the answers, 0 where an answer is no candidate.

        The batch holds `images`, `input_ids` and `attention_mask`.
        """
        question = self.encoders.read(batch["images"], batch["input_ids"], batch["attention_mask"])
        candidates, scores = self.rank(question)
        probabilities = scores.new_zeros(len(scores), len(self.answers))
        return probabilities.scatter(1, candidates, scores.softmax(dim=1))

    def answer(self, batch: Batch) -> list[tuple[str, float]]:
        """The best answer to each question of a batch as in `predict_step`, and how probable it is
        among the candidates."""
        best = self.predict_step(batch, 0).max(dim=1)
        places, probabilities = best.indices.tolist(), best.values.tolist()
        return [(self.answers[i], p) for i, p in zip(places, probabilities, strict=True)]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation.collect(batch, [answer for answer, _ in self.answer(batch)])

    def on_validation_epoch_end(self) -> None:
        answered = self.evaluation.finish()
        self.log_dict({f"val/{name}": value for name, value in accuracies(answered).items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation.collect(batch, [answer for answer, _ in self.answer(batch)])

    def on_test_epoch_end(self) -> None:
        """Writes `vqa_result.json` for the server; accuracy only where the answers are known."""
        answered = self.evaluation.finish()
        path = Path(self.trainer.default_root_dir) / RESULTS
        if self.trainer.is_global_zero:
            write_results(path, answered)
            log.info("%d questions answered: %s", len(answered), path)
        metrics = {"evaluated": float(len(answered)), **accuracies(answered)}
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
