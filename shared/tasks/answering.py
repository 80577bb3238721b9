"""Answers to questions about images: a decoder writes them, or ranks those of a closed list.

Shapes: B questions, each about an image; A answers, those of a question in a row; N answers to
choose from, k candidates of a question; L and M tokens of questions and answers; S predicted
tokens, V words.
Source: docs/papers/albef.md, section 3.8; salesforce/ALBEF@b9727e4
`models/model_vqa.py:ALBEF.rank_answer`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.distributed import gather_objects
from shared.evaluation.vqa import MATCHES, Answered, accuracies, judged
from shared.files import write_json
from shared.losses.language import smoothed_losses, text_sums, token_losses
from shared.nn.text_transformer import KeyValue, LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer
from shared.tasks.image_text_method import Evaluation, ImageTextBatch

log = logging.getLogger(__name__)
RESULTS = "vqa_result.json"


class AnswerNetwork(nn.Module):
    """Reads an image and a question, and writes an answer. Arguments as in `ImageTextEncoders`;
    the decoder has the sizes of the text encoder, and each of its layers looks at the question."""

    reads = ("images", "videos")

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], decoder_layers: int):
        super().__init__()
        self.visual_encoder = VisionTransformer(**vision)
        self.text_encoder = TextTransformer(**text, context_width=self.visual_encoder.embed_dim)
        width = self.text_encoder.width
        decoder = {**text, "num_layers": decoder_layers, "cross_attention_from": 0}
        self.text_decoder = TextTransformer(**decoder, context_width=width)
        self.word_head = LanguageHead(text["vocab_size"], width)

    def read(self, images: Tensor, ids: Tensor, mask: Tensor) -> list[KeyValue]:
        """Images (B, 3, S, S) and questions (B, L) -> what the decoder attends to, B rows. Of
        videos (B, F, 3, S, S) the tokens of all frames stand in a row."""
        tokens = self.visual_encoder(images.flatten(0, -4))
        tokens = tokens.unflatten(0, images.shape[:-3]).flatten(1, -2)
        context = self.text_encoder.project(tokens)
        states = self.text_encoder(ids, mask, context)
        return self.text_decoder.project(states, mask=mask)

    def write(
        self, ids: Tensor, mask: Tensor, question: Sequence[KeyValue], first: int = 1
    ) -> Tensor:
        """Logits (S, V) of tokens `first`, `first` + 1, ... of each answer (A, M), row after row,
        without padding. The question has A rows, or fewer, each for as many answers."""
        hidden = self.text_decoder(ids, mask, question, causal=True)
        predicted = hidden[:, first - 1 : -1][mask[:, first:].bool()]
        return self.word_head(predicted, self.text_decoder.embeddings.word)


class AnswerRanking(nn.Module):
    """A closed list of answers, ranked by an `AnswerNetwork`.

    The k most probable by their first token are scored in full, `candidates_per_pass` at a time;
    `score` "official" counts the first token twice, "corrected" once, which is the probability.
    With `smoothing` the score is minus the smoothed cross-entropy of all tokens, as in BLIP, whose
    `score` is "corrected" (docs/papers/blip.md, section 7.4).
    """

    ids: Tensor
    mask: Tensor

    def __init__(
        self, k_test: int, score: str, candidates_per_pass: int, smoothing: float | None = None
    ):
        super().__init__()
        if score not in ("official", "corrected"):
            raise ValueError(f'score must be "official" or "corrected", got {score!r}')
        if smoothing is not None and score != "corrected":
            raise ValueError('smoothing counts the first token once: score must be "corrected"')
        self.smoothing = smoothing
        self.k_test, self.candidates_per_pass = k_test, candidates_per_pass
        self.first_token_weight = 2 if score == "official" else 1
        self.answers: list[str] = []
        # They travel as hyperparameters, since their number decides the shape.
        for name in ("ids", "mask"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.long), persistent=False)

    def choose_among(self, answers: Mapping[str, Sequence[int]], decoder: TextTransformer) -> None:
        """Take the list of answers, each with its ids; refuse what the model cannot rank."""
        if len(answers) < self.k_test:
            raise ValueError(
                f"k_test={self.k_test} is more than the {len(answers)} answers to choose from: "
                "lower method.k_test, or use a longer answer list"
            )
        words = decoder.embeddings.word.num_embeddings
        if (largest := max(max(ids) for ids in answers.values())) >= words:
            raise ValueError(
                f"an answer has the id {largest}, but the model only {words} words: "
                "method.text.vocab_size and data.vocab do not belong together"
            )
        self.answers = list(answers)
        rows = [torch.tensor(ids, device=self.ids.device) for ids in answers.values()]
        self.ids = nn.utils.rnn.pad_sequence(rows, True, decoder.pad_id)
        self.mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)

    def forward(self, network: AnswerNetwork, question: list[KeyValue]) -> tuple[Tensor, Tensor]:
        """Candidates (B, k) of each question, places in the answer list, in the order of their
        first tokens' probabilities, and their scores (B, k)."""
        if not self.answers:
            raise ValueError(
                "no answers to choose from: give `answers`, or a checkpoint or data that holds them"
            )
        first_token = self.first_token_log_probs(network, question)
        first, candidates = first_token.topk(self.k_test, dim=1)
        if self.smoothing is not None:
            losses = partial(smoothed_losses, smoothing=self.smoothing)
            return candidates, self.log_probs(network, question, candidates, 1, losses)
        rest = self.log_probs(network, question, candidates, 2, token_losses)
        return candidates, self.first_token_weight * first + rest

    def probabilities(self, network: AnswerNetwork, question: list[KeyValue]) -> Tensor:
        """(B, N): of each answer among the candidates, 0 where it is none."""
        candidates, scores = self(network, question)
        every = scores.new_zeros(len(scores), len(self.answers))
        return every.scatter(1, candidates, scores.softmax(dim=1))

    def first_token_log_probs(self, network: AnswerNetwork, question: list[KeyValue]) -> Tensor:
        """(B, N): of the first token of each answer, after the one that starts them all."""
        start = self.ids[:1, :1].expand(len(question[0].key), 1)
        hidden = network.text_decoder(start, torch.ones_like(start), question, causal=True)
        logits = network.word_head(hidden[:, 0], network.text_decoder.embeddings.word)
        return logits.float().log_softmax(dim=1)[:, self.ids[:, 1]]

    def log_probs(
        self,
        network: AnswerNetwork,
        question: list[KeyValue],
        candidates: Tensor,
        first: int,
        losses_of: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """(B, k): minus the losses of the candidates' tokens from `first` on, summed. Candidates
        pass by their length, so that there is little padding, and share their question's keys and
        values."""
        lengths = self.mask.sum(dim=1)
        order = lengths[candidates].argsort(dim=1)
        sums = []
        size = max(1, self.candidates_per_pass // len(candidates))
        for part in candidates.gather(1, order).split(size, dim=1):
            rows = part.flatten()
            longest = int(lengths[rows].max())
            ids, mask = self.ids[rows, :longest], self.mask[rows, :longest]
            predicted = mask[:, first:].bool()
            logits = network.write(ids, mask, question, first)
            losses = losses_of(logits, ids[:, first:][predicted])
            sums.append(-text_sums(losses, predicted).view_as(part))
        return torch.cat(sums, dim=1).gather(1, order.argsort(dim=1))


def most_probable(probabilities: Tensor, answers: Sequence[str]) -> list[tuple[str, float]]:
    """The best of the answers by each row of their probabilities (B, N), and that of it."""
    best, places = probabilities.max(dim=1)
    return [(answers[i], p) for i, p in zip(places.tolist(), best.tolist(), strict=True)]


class AnswerEvaluation(Evaluation):
    """Accuracy of what a module answers, each question once over all ranks, where the truth is
    known; the test also writes `vqa_result.json` for the server.

    `inference` "rank" asks the module's `answer(batch)`, "generate" decodes what its `write(batch)`
    writes; `match`: see `MATCHES`.
    """

    def __init__(self, inference: str = "rank", match: str = "soft"):
        for name, value, known in (
            ("inference", inference, ("rank", "generate")),
            ("match", match, tuple(MATCHES)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        self.generates, self.match = inference == "generate", MATCHES[match]
        self.answered: list[Answered] = []

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        if self.generates:
            said = module.trainer.datamodule.tokenizer.decode(module.write(batch).sequences)
        else:
            said = [answer for answer, _ in module.answer(batch)]
        self.answered += judged(batch, said, self.match)

    def metrics(self, module: Any, testing: bool) -> dict[str, float]:
        shares, self.answered = gather_objects(self.answered), []
        by_place = {row.place: row for share in shares for row in share}
        answered = [by_place[place] for place in sorted(by_place)]
        if not testing:
            return accuracies(answered)
        path = Path(module.trainer.default_root_dir) / RESULTS
        if module.trainer.is_global_zero:
            rows = [{"question_id": row.question_id, "answer": row.answer} for row in answered]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, rows, indent=None)  # what VQA's server takes
            log.info("%d questions answered: %s", len(answered), path)
        return {"evaluated": float(len(answered)), **accuracies(answered)}
