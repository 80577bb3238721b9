"""NLVR2: is the sentence true of two images? And the pre-training that prepares for two images.

Every fusion layer of pre-training becomes two: one looks at the first image, one at the second.

Shapes: B entries of this rank, T texts, R images of N patches and width C, L tokens.
Source: docs/papers/albef.md, section 3.9; salesforce/ALBEF@b9727e4
`models/model_nlvr.py:ALBEF.forward`, `models/model_pretrain_nlvr.py:ALBEF.forward`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.albef.classification import (
    ClassAccuracy,
    Classification,
    DistilledClassification,
    percent_right,
)
from methods.albef.model import classifier
from methods.albef.training import Batch, Finetuning
from shared.distributed import rank
from shared.losses.contrastive import similarity_logits
from shared.losses.image_text import draw_negatives, negative_weights
from shared.nn.heads import unit_norm
from shared.nn.text_transformer import TextTransformer
from shared.nn.vision_transformer import VisionTransformer
from shared.randomness import torch_generator

TEMPERATURE = 0.07  # of text assignment; not learned
FEWEST = 3  # images of a batch, for text assignment: a text's own and two others


class PairNetwork(nn.Module):
    """Image encoder, and a text encoder whose fusion layers come in twins.

    Twins share the projections of keys and values; the first of them attends to the first image,
    the second to the second.

    Args:
        vision, text: see `ImageTextEncoders`; the layers of `text` are counted with all twins.
        head: maps the text's class token (T, D) to logits.
    """

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], head: nn.Module):
        super().__init__()
        fusion_layers = text["num_layers"] - text["cross_attention_from"]
        if fusion_layers % 2:
            raise ValueError(
                f"num_layers={text['num_layers']} leaves {fusion_layers} layers that see images, "
                "but they come in twins: make it cross_attention_from and an even number"
            )
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        self.text_encoder = TextTransformer(**text, context_width=width, share_projections=2)
        self.classifier = head

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(2 B, 3, S, S), first images before second ones, and (B, L) -> logits."""
        pair = torch.arange(len(images), device=images.device).chunk(2)
        return self.classify(self.visual_encoder(images), pair, ids, mask)

    def classify(
        self, image_tokens: Tensor, pair: tuple[Tensor, ...], ids: Tensor, mask: Tensor
    ) -> Tensor:
        """Logits of texts about two images each.

        Args:
            image_tokens: (R, 1 + N, C); each image is projected once, however often it is used.
            pair: the rows of the first and of the second images, (T,) each.
            ids, mask: (T, L).
        """
        projected = self.text_encoder.project(image_tokens, every=2)
        context = [keys_values.rows(rows) for keys_values in projected for rows in pair]
        return self.classifier(self.text_encoder(ids, mask, context)[:, 0])


class NLVR(DistilledClassification):
    """Fine-tuning for NLVR2.

    Args:
        vision, text: see `PairNetwork`.
        frame: see `MomentumDistilled`.
    """

    class_names = ("false", "true")

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], **frame: Any):
        head = classifier(text["hidden_size"], len(self.class_names))
        super().__init__(PairNetwork(vision, text, head), **frame)
        self.save_hyperparameters()


@dataclass(frozen=True)
class AssignmentDraws:
    """What text assignment draws for T texts.

    Args:
        match: (T,) uniform; above 1/3 the text's own image is one of the two.
        order: (T,) uniform; above 1/2 it is the first one.
        other: (T,) the row of the image beside it.
        two: (T, 2) rows of two other images, for texts to which neither belongs.
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
        """Rows of first and second images, (T,) each, and labels (T,).

        Args: own (T,) rows. Label 0: the text is that of the first image, 1: of the second, 2: of
        neither.
        """
        match, is_first = self.match > 1 / 3, self.order > 0.5
        first = torch.where(is_first, own, self.other)
        second = torch.where(is_first, self.other, own)
        first = torch.where(match, first, self.two[:, 0])
        second = torch.where(match, second, self.two[:, 1])
        return (first, second), torch.where(match, (~is_first).long(), 2)


class AssignmentNetwork(PairNetwork):
    """With the projection of pre-training, by whose similarities other images are drawn.

    It has no gradient, so that it is frozen here; the official optimiser passes over it.
    """

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, classes: int):
        super().__init__(vision, text, nn.Linear(text["hidden_size"], classes))
        self.vision_proj = nn.Linear(self.visual_encoder.embed_dim, embed_dim)
        self.vision_proj.requires_grad_(False)

    @torch.no_grad()
    def similarities(self, image_tokens: Tensor) -> Tensor:
        """(R, 1 + N, C) -> (R, R) logits: how alike images are."""
        features = unit_norm(self.vision_proj(image_tokens[:, 0]))
        return similarity_logits(features, features, TEMPERATURE)


class TextAssignment(Classification, Finetuning):
    """Pre-training for two images: which of them does the text belong to, or to neither?

    The other images are those of the batch, similar ones rather. No momentum copy. The official
    model's text projection and temperature have no use in it and are left out.

    Args:
        vision, text: see `PairNetwork`. embed_dim: E of the image features.
        seed: draws are a function of (seed, step, rank).
        schedule: see `Finetuning`.
    """

    class_names = ("first", "second", "neither")
    encoders: AssignmentNetwork

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        seed: int,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.save_hyperparameters()
        self.seed = seed
        self.encoders = AssignmentNetwork(vision, text, embed_dim, len(self.class_names))
        self.accuracy = ClassAccuracy(self.class_names)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        own = torch.arange(len(batch["images"]), device=self.device)
        purpose = f"text assignment, rank {rank()}"
        generator = torch_generator(self.seed, self.global_step, purpose)
        logits, labels = self.assign(batch, own, generator)
        self.log_train({"accuracy": percent_right(logits, labels)})
        loss = F.cross_entropy(logits.float(), labels)
        return self.total_loss({"loss_ta": loss}, {}, batch["indices"])

    def assign(
        self, batch: Batch, own: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Logits (T, 3) and labels (T,) of the batch's texts; `own` (T,): rows of their images.

        Raises:
            ValueError: fewer than three images.
        """
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

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Every text of the evaluated images; what is drawn depends on the seed and the batch."""
        own = (batch["text_image"][:, None] == batch["indices"]).long().argmax(dim=1)
        first = int(batch["indices"][0])
        generator = torch_generator(self.seed, first, "text assignment, evaluation")
        return self.assign(batch, own, generator)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch["images"]) >= FEWEST:  # else the last batch, which has too few other images
            super().validation_step(batch, batch_idx)
