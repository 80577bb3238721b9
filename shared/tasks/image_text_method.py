"""The frame of image-text trainings: AdamW under a stepped cosine, and an evaluation that is held.

Shapes: B texts, R images, C classes.
Source: docs/papers/albef.md, sections 3.5, 3.6 and 7; salesforce/ALBEF@b9727e4
`scheduler/cosine_lr.py`, `optim/optim_factory.py` and the scripts' training loops.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from shared.checkpoints.official import KeyReport
from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.data.image_text.pairs import ImageTextBatch
from shared.distributed import own_rows, world_size
from shared.randomness import torch_generator
from shared.training.method import Method
from shared.training.optim import decay_matrices, weight_decay_groups
from shared.training.schedules import linear_rate, stepped_cosine

log = logging.getLogger(__name__)
ADDED = {"bos_id": "[DEC]", "enc_id": "[ENC]"}  # words that `data.text_rules` add


def images_and_texts(batch: ImageTextBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Images (R, 3, S, S), ids and mask (B, L) of a batch."""
    return batch["images"], batch["input_ids"], batch["attention_mask"]


class Evaluation:
    """What a module is judged by: collects batches, then computes metrics and forgets them."""

    def check(self, data: Any) -> None:
        """Refuse, before training on a data module, what the evaluation would refuse after it."""

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        """Take a batch of the evaluation; the module is in evaluation mode."""
        raise NotImplementedError

    def metrics(self, module: Any, testing: bool) -> Mapping[str, Any]:
        """Metrics by name of all that was collected on all ranks, the same on each of them."""
        raise NotImplementedError


class ClassAccuracy(MulticlassConfusionMatrix, Evaluation):
    """Counts (true, predicted) classes over all ranks from a module's `outcome(batch)`, logits
    (B, C) and labels (B,); official scripts let ranks repeat entries and average over batches."""

    def __init__(self, names: Sequence[str]):
        super().__init__(len(names))
        self.names = tuple(names)

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        self.update(*module.outcome(batch))

    def metrics(self, module: Any = None, testing: bool = False) -> dict[str, Tensor]:
        """`accuracy` in percent of the `evaluated` texts, `accuracy_<name>` of those of a class."""
        counts = self.compute().double()
        self.reset()
        right, total = counts.diagonal(), counts.sum(dim=1)
        values = {"accuracy": 100 * right.sum() / total.sum(), "evaluated": total.sum()}
        for name, of_class, all_of_class in zip(self.names, right, total, strict=True):
            if all_of_class > 0:
                values[f"accuracy_{name}"] = 100 * of_class / all_of_class
        return {name: value.float() for name, value in values.items()}


class ImageTextMethod(Method):
    """Rate by `stepped_cosine`, optimiser with decay as in `decay_matrices`, or of everything, and
    an `evaluation` that is logged as `val/...` and `test/...`; subclasses add networks, mostly as
    `encoders`, and `training_step`, and may have another `rate`.

    With `warmup_ratio` the rate is that of `linear_rate`, and AdamW that of transformers: epsilon
    is added to the root of the second moment before its bias is corrected (docs/papers/alpro.md,
    section 3.9).
    """

    encoders: Any

    def __init__(
        self,
        evaluation: Evaluation,
        lr: float,
        min_lr: float,
        epochs: int,
        weight_decay: float,
        warmup_lr: float = 0.0,
        warmup_blocks: int = 0,
        warmup_block: int = 100,
        decay_all: bool = False,
        warmup_ratio: float | None = None,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__()
        self.betas, self.eps = (betas[0], betas[1]), eps
        self.evaluation, self.weight_decay, self.decay_all = evaluation, weight_decay, decay_all
        self.schedule: dict[str, Any] = {"lr": lr, "min_lr": min_lr}
        if warmup_ratio is None:
            self.schedule |= {"warmup_lr": warmup_lr, "epochs": epochs}
            self.schedule |= {"warmup_blocks": warmup_blocks, "warmup_block": warmup_block}
        else:
            self.schedule["warmup_ratio"] = warmup_ratio

    def setup(self, stage: str) -> None:
        """Load the initial weights; those of a checkpoint, if one is continued, come after."""
        if stage == "fit":
            self.load_initial(self.hparams.get("initial") or {})

    def load_initial(self, initial: Mapping[str, Any]) -> None:
        """Load the encoders that {vision, text} names, see `load_vision` and `load_hugging_face`,
        where the text may lack the last `new_words` of ours; a momentum copy becomes equal to
        them."""
        if source := initial.get("vision"):
            log.info("%s", load_vision(self.encoders.visual_encoder, source))
        if source := initial.get("text"):
            log.info("%s", "\n".join(map(str, self.load_text(source))))
        momentum: Any = getattr(self, "momentum_encoders", None)
        if any(initial.values()) and momentum is not None:
            momentum.update(self.encoders, 0.0)

    def load_text(self, source: str) -> list[KeyReport]:
        """BERT for the text encoder, and for its word prediction if it has one."""
        head, new_words = getattr(self.encoders, "word_head", None), self.new_words
        return [load_hugging_face(self.encoders.text_encoder, source, head, new_words)]

    @property
    def new_words(self) -> int:
        """How many words at the end of the vocabulary the initial text encoder does not know."""
        return (self.hparams.get("initial") or {}).get("new_words", 0)

    def on_fit_start(self) -> None:
        """Refuse a vocabulary or an evaluation that does not fit the data, naming both."""
        data = getattr(self.trainer, "datamodule", None)
        tokenizer, p = getattr(data, "tokenizer", None), self.hparams
        if tokenizer is not None:
            words = p.get("text", {}).get("vocab_size", len(tokenizer))
            if len(tokenizer) > words:
                given = f"method.text.vocab_size={words}"
                raise ValueError(f"{given} is less than the {len(tokenizer)} words of data.vocab")
            known = ("cls_id", "sep_id", "unk_id", "mask_id", *ADDED)
            numbers = {name: p[name] for name in known if name in p}
            if "generation" in p:
                numbers["generation.end_id"] = p["generation"]["end_id"]
            for name, number in numbers.items():
                if name in ADDED:
                    expected = tokenizer.id_of(ADDED[name])
                else:
                    expected = getattr(tokenizer, name.replace("generation.end", "sep"))
                if number != expected:
                    raise ValueError(f"method.{name}={number}, but it is {expected} in data.vocab")
        if data is not None:
            self.evaluation.check(data)

    def on_train_batch_start(self, batch: ImageTextBatch, batch_idx: int) -> None:
        """The rate of this iteration; the official scripts set it after the one before."""
        rate = self.rate(self.current_epoch, batch_idx)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
            if "warmup_ratio" in self.schedule:
                group["eps"] = self.eps / math.sqrt(1 - self.betas[1] ** (self.global_step + 1))

    def rate(self, epoch: int, iteration: int) -> float:
        """The learning rate at an iteration of an epoch, both from 0."""
        if "warmup_ratio" not in self.schedule:
            return stepped_cosine(epoch, iteration, **self.schedule)
        total = int(self.trainer.estimated_stepping_batches)
        return linear_rate(self.global_step + 1, total, **self.schedule)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups_of = weight_decay_groups if self.decay_all else decay_matrices
        groups, rate = groups_of(self, self.weight_decay), self.schedule["lr"]
        return torch.optim.AdamW(groups, rate, betas=self.betas, eps=self.eps, fused=True)

    def step_draws(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers of `shape` (B, ...) for this rank's pairs: functions of the seed, the
        step and a pair's place in the batch of all ranks."""
        generator = torch_generator(self.hparams["seed"], self.global_step, purpose)
        draws = torch.rand(shape[0] * world_size(), *shape[1:], generator=generator)
        return own_rows(draws).to(self.device)

    def outcome(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and labels (B,) of a classification."""
        return self.encoders(*images_and_texts(batch)), batch["labels"]

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """Features (B, E) of unit norm of the batch's images or videos, or the probabilities (B, C)
        of classes, for which it also needs the texts; of two images a text, first ones first."""
        if self.predicts == "embeddings":
            return self.encoders.encode_image(batch["images"])[1]
        return self.encoders(*images_and_texts(batch)).float().softmax(dim=1)

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        self.evaluation.collect(self, batch)

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def log_evaluation(self, split: str) -> None:
        metrics = self.evaluation.metrics(self, testing=split == "test")
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()})
