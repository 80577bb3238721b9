"""What pre-training and retrieval share: contrast with momentum features, and matching.

Shapes: B pairs of this rank, L tokens, N patches, E joint dimension, Q queue.
Source: docs/papers/albef.md, sections 3.1, 3.2, 3.7; salesforce/ALBEF@b9727e4
`models/model_pretrain.py`, `models/model_retrieval.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.albef.evaluation import RetrievalEvaluation
from methods.albef.model import ImageTextEncoders
from methods.albef.training import Batch, MomentumDistilled
from shared.data.image_text.pairs import ImageTextData
from shared.distributed import all_gather, own_rows, pad_to_longest, world_size
from shared.losses.contrastive import similarity_logits, soft_target_nce
from shared.losses.image_text import (
    draw_negatives,
    multi_positive_targets,
    negative_weights,
    soften,
)
from shared.nn.queue import FeatureQueue
from shared.nn.text_transformer import KeyValue
from shared.randomness import torch_generator


class Alignment(MomentumDistilled):
    """Encoders, momentum encoders, queues, temperature and matching head.

    Args:
        vision, text, embed_dim, masked_lm: see `ImageTextEncoders`.
        queue_size: Q. temperature: tau at the start; it is learned.
        hard_negatives: draw the negatives of matching by similarity; else evenly.
        negatives: of the batch, in both losses: "local", this rank's, as in the official code, or
            "global", those of all ranks.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: masks and negatives are functions of (seed, step, rank).
        frame: see `MomentumDistilled`.
    """

    predicts = "embeddings"
    encoders: ImageTextEncoders

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        masked_lm: bool,
        queue_size: int,
        temperature: float,
        hard_negatives: bool,
        negatives: str,
        evaluation: dict[str, Any],
        seed: int,
        **frame: Any,
    ):
        if negatives not in ("local", "global"):
            raise ValueError(f'negatives must be "local" or "global", got {negatives!r}')
        super().__init__(ImageTextEncoders(vision, text, embed_dim, masked_lm), **frame)
        self.seed, self.hard_negatives, self.negatives = seed, hard_negatives, negatives
        self.itm_head = nn.Linear(self.encoders.text_encoder.width, 2)
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        # One queue of pairs: `features` are those of the images. It starts with random directions.
        self.queue = FeatureQueue(queue_size, embed_dim, {"text": embed_dim, "idx": 1})
        for features in (self.queue.features, self.queue["text"]):
            features.copy_(F.normalize(torch.randn(queue_size, embed_dim), dim=1))
        self.queue["idx"].fill_(-100)
        self.retrieval = RetrievalEvaluation(**evaluation)

    def contrast(
        self,
        features: tuple[Tensor, Tensor],
        momentum_features: tuple[Tensor, Tensor],
        targets: Tensor,
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITA: each image against all texts of batch and queue, and the other way round.

        Args:
            features, momentum_features: of images and texts, each (B, E); keys are momentum ones.
            targets: (B, C + Q), rows that sum to 1, equal for both directions.

        Returns:
            the loss, and the logits image to text and text to image, (B, C + Q).
        """
        image, text = features
        image_m, text_m = momentum_features
        image_keys = torch.cat([self.candidates(image_m), self.queue.features])
        text_keys = torch.cat([self.candidates(text_m), self.queue["text"]])
        with torch.no_grad():
            teacher_i2t = similarity_logits(image_m, text_keys, self.temp)
            teacher_t2i = similarity_logits(text_m, image_keys, self.temp)
        i2t = similarity_logits(image, text_keys, self.temp)
        t2i = similarity_logits(text, image_keys, self.temp)
        loss_i2t = soft_target_nce(i2t, soften(targets, teacher_i2t, alpha))
        loss_t2i = soft_target_nce(t2i, soften(targets, teacher_t2i, alpha))
        return (loss_i2t + loss_t2i) / 2, i2t, t2i

    def candidates(self, x: Tensor) -> Tensor:
        """(B, ...) of this rank -> (C, ...) of all pairs that its pairs are contrasted with."""
        return all_gather(x) if self.negatives == "global" else x

    def positives(self, identities: Tensor) -> Tensor:
        """(B, C) whether a candidate is of the same identity."""
        return identities[:, None] == self.candidates(identities)[None]

    def contrast_targets(self, identities: Tensor, queued: bool) -> Tensor:
        """(B, C + Q): evenly over all pairs of the same identity, in the queue too if `queued`."""
        of_queue = identities[:, None] == self.queue["idx"][:, 0].to(identities.dtype)[None]
        return multi_positive_targets(
            torch.cat([self.positives(identities), of_queue & queued], dim=1)
        )

    def enqueue(self, image: Tensor, text: Tensor, identities: Tensor) -> None:
        """Momentum features (B, E) of all ranks into the queue, with their identities (B,)."""
        self.queue.enqueue(
            all_gather(image), text=all_gather(text), idx=all_gather(identities.float()[:, None])
        )

    def mine_negatives(self, i2t: Tensor, t2i: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
        """A negative image for each text and a negative text for each image, among the candidates.

        Args:
            i2t, t2i: logits (B, C + Q) of `contrast`; the more similar the more probable.
            identities: (B,); pairs of the same one are no negatives of one another.
        """
        positives = self.positives(identities)
        if not self.hard_negatives:
            i2t, t2i = torch.zeros_like(i2t), torch.zeros_like(t2i)
        i2t, t2i = (logits[:, : positives.shape[1]] for logits in (i2t, t2i))
        draws = self.step_draws("negatives", len(identities), 2)
        image_of_text = draw_negatives(negative_weights(t2i, positives), positives, draws[:, 0])
        text_of_image = draw_negatives(negative_weights(i2t, positives), positives, draws[:, 1])
        return image_of_text, text_of_image

    def step_draws(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers of `shape` (B, ...) for this rank's pairs: functions of the seed, the
        step and a pair's place in the batch of all ranks."""
        generator = torch_generator(self.seed, self.global_step, purpose)
        rows, *rest = shape
        draws = torch.rand(rows * world_size(), *rest, generator=generator)
        return own_rows(draws).to(self.device)

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, L) each; L is equal on all ranks where their texts are exchanged."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.negatives == "global":
            pad_id = self.encoders.text_encoder.pad_id
            return pad_to_longest(ids, pad_id), pad_to_longest(mask, 0)
        return ids, mask

    def fuse(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        mask: Tensor,
        negatives: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, list[KeyValue]]:
        """Fuses pairs, texts with negative images, and negative texts with images, in one pass.

        Each image's keys and values are projected once, and each text goes once through the part
        of the fusion layers that sees no image. Gradients reach what is picked.

        Args:
            image_tokens (B, 1 + N, C); text_tokens (B, L, D); mask (B, L).
            negatives: as `mine_negatives` draws them.

        Returns:
            their class tokens (3 B, D), and the keys and values of the B images.
        """
        image_of_text, text_of_image = negatives
        text_encoder = self.encoders.text_encoder
        read = other_read = text_encoder.read(text_tokens, mask)
        other_mask = mask
        own = torch.arange(len(mask), device=mask.device)
        if self.negatives == "global":
            others = all_gather(image_tokens, grad=True)[image_of_text]
            image_tokens, image_of_text = torch.cat([image_tokens, others]), own + len(own)
            other_read, other_mask = all_gather(read, grad=True), all_gather(mask)
        texts = torch.cat([read, read, other_read[text_of_image]])
        masks = torch.cat([mask, mask, other_mask[text_of_image]])
        rows = torch.cat([own, image_of_text, own])
        context = text_encoder.project(image_tokens)
        picked = [key_value.rows(rows) for key_value in context]
        matched = text_encoder.fuse(texts, masks, picked, first_only=True, has_read=True)[:, 0]
        return matched, [key_value.rows(slice(len(own))) for key_value in context]

    def match_logits(self, image_tokens: Tensor, text_tokens: Tensor, mask: Tensor) -> Tensor:
        """(r R, 2) ITM logits, column 1 "match", of r consecutive texts for each of R images.

        Args: image_tokens (R, 1 + N, C); text_tokens (r R, L, D) of the text-only layers; mask.
        """
        text_encoder = self.encoders.text_encoder
        context = text_encoder.project(image_tokens)
        return self.itm_head(text_encoder.fuse(text_tokens, mask, context)[:, 0])

    def match(self, context: Sequence[KeyValue], read: Tensor, mask: Tensor) -> Tensor:
        """As `match_logits`, from what `project` made of the images and `read` of the texts.

        Quicker: the last layer computes the class tokens alone.
        """
        fused = self.encoders.text_encoder.fuse(read, mask, context, first_only=True, has_read=True)
        return self.itm_head(fused[:, 0])

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if isinstance(data := getattr(self.trainer, "datamodule", None), ImageTextData):
            self.retrieval.check(data)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Image features (B, E) of unit norm."""
        return self.encoders.encode_image(batch["images"])[1]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.retrieval.collect(self, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{k}": v for k, v in self.retrieval.metrics(self).items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.retrieval.collect(self, batch)

    def on_test_epoch_end(self) -> None:
        metrics = self.retrieval.metrics(self, testing=True)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})
