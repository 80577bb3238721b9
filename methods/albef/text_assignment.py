"""Pre-training for two images: which of them does a text belong to, or to neither?

Shapes: T texts, R images of N patches and width W, L tokens.
Source: docs/papers/albef.md, section 3.9; salesforce/ALBEF@b9727e4
`models/model_pretrain_nlvr.py:ALBEF.forward`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.albef.classification import PairNetwork
from shared.distributed import rank
from shared.evaluation.accuracy import percent_correct
from shared.losses.contrastive import similarity_logits
from shared.losses.image_text import draw_negatives, negative_weights
from shared.nn.heads import unit_norm
from shared.randomness import torch_generator
from shared.tasks.image_text_method import (
    ClassAccuracy,
    ImageTextBatch,
    ImageTextMethod,
)

CLASSES = ("first", "second", "neither")
TEMPERATURE = 0.07  # of similarities; not learned
FEWEST = 3  # images of a batch: a text's own and two others


class AssignmentDraws(NamedTuple):
    """What text assignment draws for T texts.

    `match` (T,): uniform; above 1/3 the text's own image is one of the two. `order` (T,): uniform;
    above 1/2 it is the first one. `other` (T,): row of the image beside it. `two` (T, 2): rows of
    two other images, for texts to which neither belongs.
    """

    match: Tensor
    order: Tensor
    other: Tensor
    two: Tensor

    @classmethod
    def draw(cls, weights: Tensor, own: Tensor, generator: torch.Generator) -> "AssignmentDraws":
        """Others by their weights (T, R); `own` (T, R) is True at a text's own image."""
        draws = torch.rand(5, len(weights), generator=generator).to(weights.device)
        match, order = draws[:2]
        other = draw_negatives(weights, own, draws[2])
        # Two without replacement, one after the other.
        first = draw_negatives(weights, own, draws[3])
        taken = F.one_hot(first, weights.shape[1]).bool()
        second = draw_negatives(weights.masked_fill(taken, 0.0), own | taken, draws[4])
        return cls(match, order, other, torch.stack([first, second], dim=1))

    def pairs(self, own: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Rows of first and second images, (T,) each, and labels (T,), from the rows `own` (T,):
        0 if the text is that of the first image, 1 of the second, 2 of neither."""
        match, is_first = self.match > 1 / 3, self.order > 0.5
        first = torch.where(is_first, own, self.other)
        second = torch.where(is_first, self.other, own)
        first = torch.where(match, first, self.two[:, 0])
        second = torch.where(match, second, self.two[:, 1])
        return (first, second), torch.where(match, (~is_first).long(), 2)


class AssignmentNetwork(PairNetwork):
    """With the projection of pre-training, by whose similarities other images are drawn; it has no
    gradient, so that it is frozen here (the official optimiser passes over it)."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, classes: int):
        super().__init__(vision, text, nn.Linear(text["hidden_size"], classes))
        self.vision_proj = nn.Linear(self.visual_encoder.embed_dim, embed_dim)
        self.vision_proj.requires_grad_(False)

    @torch.no_grad()
    def similarities(self, image_tokens: Tensor) -> Tensor:
        """(R, 1 + N, C) -> (R, R) logits: how alike images are."""
        features = unit_norm(self.vision_proj(image_tokens[:, 0]))
        return similarity_logits(features, features, TEMPERATURE)


class TextAssignment(ImageTextMethod):
    """Learns which of two images a text belongs to; the other images are those of the batch,
    similar ones rather. What is drawn is a function of (seed, step, rank).

    No momentum copy. The official model's text projection and temperature have no use in it and
    are left out.
    """

    accumulates = True
    encoders: AssignmentNetwork

    def __init__(
        self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, seed: int, **frame: Any
    ):
        super().__init__(ClassAccuracy(CLASSES), **frame)
        self.save_hyperparameters()
        self.encoders = AssignmentNetwork(vision, text, embed_dim, len(CLASSES))

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        own = torch.arange(len(batch["images"]), device=self.device)
        purpose = f"text assignment, rank {rank()}"
        generator = torch_generator(self.hparams["seed"], self.global_step, purpose)
        logits, labels = self.assign(batch, own, generator)
        self.log_train({"accuracy": percent_correct(logits, labels)})
        loss = F.cross_entropy(logits.float(), labels)
        return self.total_loss({"loss_ta": loss}, {}, batch["indices"])

    def assign(
        self, batch: ImageTextBatch, own: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Logits (T, 3) and labels (T,) of the batch's texts; `own` (T,): rows of their images."""
        count = len(batch["images"])
        if count < FEWEST:
            raise ValueError(
                f"text assignment needs {FEWEST} images on each rank, this batch has {count}: "
                "raise batch_size"
            )
        image_tokens = self.encoders.visual_encoder(batch["images"])
        mine = F.one_hot(own, count).bool()
        weights = negative_weights(self.encoders.similarities(image_tokens)[own], mine)
        pair, labels = AssignmentDraws.draw(weights, mine, generator).pairs(own)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return self.encoders.classify(image_tokens, pair, ids, mask), labels

    def outcome(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """Every text of the evaluated images; what is drawn depends on the seed and the batch."""
        own = (batch["text_image"][:, None] == batch["indices"]).long().argmax(dim=1)
        first = int(batch["indices"][0])
        generator = torch_generator(self.hparams["seed"], first, "text assignment, evaluation")
        return self.assign(batch, own, generator)

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        if len(batch["images"]) >= FEWEST:  # else the last batch, which has too few other images
            super().validation_step(batch, batch_idx)
