"""Fine-tuning for questions about videos: an answer is a class.

Shapes: B questions, each about a clip, L tokens, D width, A answers.
Source: docs/papers/alpro.md, sections 4.2, 7 and 10 (item 1); salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:AlproForSequenceClassification`, `src/tasks/run_video_qa.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from methods.alpro.network import JointTransformer
from shared.evaluation.accuracy import percent_correct
from shared.nn.image_text import two_layer_head
from shared.nn.timesformer import TimeSformer
from shared.tasks.answering import AnswerEvaluation, most_probable
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod, images_and_texts

CORE = ("attn", "temporal_attn", "mlp")  # of a block of the visual encoder


class QuestionNetwork(nn.Module):
    """Reads a clip and a question, and tells `num_answers` answers apart by the fused class token;
    further arguments as in `VideoTextEncoders`."""

    reads = ("videos",)

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], num_answers: int):
        super().__init__()
        self.visual_encoder = TimeSformer(**vision)
        width = self.visual_encoder.embed_dim
        self.text_encoder = JointTransformer(**text, context_width=width)
        self.classifier = two_layer_head(width, num_answers, hidden=2 * width)

    def forward(self, clips: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T, 3, S, S) and (B, L) -> logits (B, A)."""
        context = self.text_encoder.project(self.visual_encoder(clips))
        hidden = self.text_encoder.encode(ids, mask)
        fused = self.text_encoder.fuse(hidden, mask, context, leading=1)
        return self.classifier(fused[:, 0])


class VideoQA(ImageTextMethod):
    """Cross-entropy with the right answer of a closed list.

    Args:
        vision, text, num_answers: see `QuestionNetwork`; classes may be more than the answers.
        evaluation: arguments of `AnswerEvaluation`.
        answers: the list, in the order of the classes; None: that of the data, which a checkpoint
            keeps.
        freeze_visual_core: keep attention and feed-forward layers of the visual encoder as they
            are, as the official configs do by the way in which they save memory.
    """

    accumulates = True

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        num_answers: int,
        evaluation: Mapping[str, str] | None = None,
        answers: Sequence[str] | None = None,
        freeze_visual_core: bool = False,
        initial: Mapping[str, Any] | None = None,
        **frame: Any,
    ):
        super().__init__(AnswerEvaluation(**(evaluation or {})), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = QuestionNetwork(vision, text, num_answers)
        if freeze_visual_core:
            for block in self.encoders.visual_encoder.blocks:
                for part in CORE:
                    getattr(block, part).requires_grad_(False)

    def setup(self, stage: str) -> None:
        """The answers of the data replace those of a checkpoint."""
        super().setup(stage)
        answers = getattr(getattr(self.trainer, "datamodule", None), "answers", None)
        if answers is not None:
            self.choose_among(answers)

    def choose_among(self, answers: Sequence[str]) -> None:
        """Take the list of answers, which a checkpoint keeps; ValueError of more than classes."""
        if len(answers) > (classes := self.hparams["num_answers"]):
            told = f"method.num_answers={classes}, but data.answer_list has {len(answers)}"
            raise ValueError(f"{told}: make it as many")
        self.hparams["answers"] = list(answers)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        logits, labels = self.encoders(*images_and_texts(batch)), batch["labels"]
        self.log_train({"accuracy": percent_correct(logits, labels)})
        loss = F.cross_entropy(logits.float(), labels)
        return self.total_loss({"loss_answer": loss}, {}, batch["indices"])

    def answer(self, batch: ImageTextBatch) -> list[tuple[str, float]]:
        """The most probable answer to each question of a batch, and its probability."""
        answers = self.hparams["answers"]
        if not answers:
            raise ValueError("no answers to choose from: give data or a checkpoint that holds them")
        return most_probable(self.predict_step(batch, 0)[:, : len(answers)], answers)
