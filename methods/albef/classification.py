"""Fine-tuning for SNLI-VE and NLVR2: a text about one or two images is of one of C classes.

Shapes: B texts, T texts of which some share images, R images of N patches and width W, L tokens.
Source: docs/papers/albef.md, sections 3.9, 3.10 and 7; salesforce/ALBEF@b9727e4
`models/model_nlvr.py`, `models/model_ve.py`, `NLVR.py`, `VE.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.evaluation.accuracy import percent_correct
from shared.losses.image_text import distilled_cross_entropy
from shared.nn.image_text import two_layer_head
from shared.nn.text_transformer import TextTransformer
from shared.nn.vision_transformer import VisionTransformer
from shared.tasks.image_text_method import (
    ClassAccuracy,
    ImageTextBatch,
    ImageTextMethod,
    images_and_texts,
)
from shared.tasks.momentum_teacher import MomentumTeacher


class EntailmentNetwork(nn.Module):
    """Image and text encoder, see `ImageTextEncoders`; a classifier on the text's class token."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], classes: int):
        super().__init__()
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        self.text_encoder = TextTransformer(**text, context_width=width)
        self.classifier = two_layer_head(self.text_encoder.width, classes)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, L) -> logits (B, C)."""
        context = self.text_encoder.project(self.visual_encoder(images))
        return self.classifier(self.text_encoder(ids, mask, context)[:, 0])


class PairNetwork(nn.Module):
    """Image encoder, and a text encoder whose fusion layers come in twins, for two images.

    Every fusion layer of pre-training becomes two, which share the projections of keys and values;
    the first of them attends to the first image, the second to the second. `text` counts all
    twins. `head` maps the text's class token (T, D) to logits.
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
        """Logits of texts (T, L) about two images each, whose rows among the image tokens
        (R, 1 + N, W) are `pair`, (T,) each; an image is projected once, however often it is used.
        """
        projected = self.text_encoder.project(image_tokens, every=2)
        context = [keys_values.rows(rows) for keys_values in projected for rows in pair]
        return self.classifier(self.text_encoder(ids, mask, context)[:, 0])


class Classification(ImageTextMethod):
    """Labels, softened by the momentum copy's predictions.

    `official.warm_start` lets the copy start from the weights that it has loaded. The official
    NLVR2 script copies before it loads a file without momentum weights, so that its teacher starts
    from BERT and a random ViT (docs/papers/albef.md, section 10.1, item 5).

    Args:
        images_per_text: 1 as in SNLI-VE or 2 as in NLVR2. class_names: of the C classes, in order.
        encoder_momentum, alpha, ramp: see `MomentumTeacher`. Officially SNLI-VE has no ramp.
    """

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        images_per_text: int,
        class_names: Sequence[str],
        encoder_momentum: float,
        alpha: float,
        ramp: bool,
        **frame: Any,
    ):
        super().__init__(ClassAccuracy(class_names), **frame)
        self.save_hyperparameters()
        if images_per_text == 2:
            head = two_layer_head(text["hidden_size"], len(class_names))
            self.encoders: nn.Module = PairNetwork(vision, text, head)
        else:
            self.encoders = EntailmentNetwork(vision, text, len(class_names))
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        alpha = self.momentum_encoders.weight(self, batch_idx)
        logits, labels = self.outcome(batch)
        self.momentum_encoders.follow(self.encoders)
        teacher_logits = None
        if alpha > 0:
            with torch.no_grad():
                teacher_logits = self.momentum_encoders.module(*images_and_texts(batch))
        loss = distilled_cross_entropy(logits, labels, teacher_logits, alpha)
        self.log_train({"alpha": alpha, "accuracy": percent_correct(logits, labels)})
        return self.total_loss({"loss_cls": loss}, {}, batch["indices"])
