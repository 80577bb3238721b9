"""BLIP's pre-training: contrast (ITC), matching (ITM) and writing (LM), with one text transformer.

Shapes: B pairs of this rank, L tokens, N patches, D text width, E joint dimension, Q queue.
Source: docs/papers/blip.md, sections 3.1 to 3.7; salesforce/BLIP@056a169
`models/blip_pretrain.py:BLIP_Pretrain.forward`, `pretrain.py:train`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.blip.network import MixtureEncoders, TextDecoder
from shared.checkpoints.official import KeyReport
from shared.checkpoints.pretrained_text import load_hugging_face
from shared.distributed import rank
from shared.losses.image_text import matching_loss
from shared.nn.text_transformer import Sharing, share_layers
from shared.tasks.image_text_contrast import ImageTextContrast
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from shared.tasks.momentum_teacher import MomentumTeacher
from shared.training.schedules import decay_by_epoch

TEMPERATURES = (0.001, 0.5)
NEW_WORDS = 2  # [DEC] and [ENC], which BERT has not


class Pretraining(ImageTextMethod):
    """ITC + ITM + LM, with equal weights; the decoder shares its parameters with the text encoder.

    Args:
        vision, text, embed_dim: see `ImageTextEncoders`; every layer of the text sees the image.
        bos_id, enc_id: ids of [DEC] and [ENC], which begin texts for the decoder and the encoder.
        sharing: see `share_layers`. The momentum copy begins equal to the encoder; the official one
            keeps random rows for the two new words and random cross-attention.
        queue_size, temperature: see `ImageTextContrast`.
        floor: of the weights by which negatives are drawn: see `negative_weights`.
        encoder_momentum, alpha, ramp: see `MomentumTeacher`; alpha rises in so many epochs.
        label_smoothing: of the words that the decoder predicts.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: negatives are functions of (seed, step, rank).
        initial: `{vision, text}`, what training starts from: see `load_initial`; null for random
            weights.
        lr, min_lr, warmup_lr, warmup_steps, lr_decay: see `decay_by_epoch`.
    """

    predicts = "embeddings"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        bos_id: int,
        enc_id: int,
        sharing: Sharing,
        queue_size: int,
        temperature: float,
        floor: float,
        encoder_momentum: float,
        alpha: float,
        ramp: int,
        label_smoothing: float,
        evaluation: dict[str, Any],
        seed: int,
        lr: float,
        min_lr: float,
        warmup_lr: float,
        warmup_steps: int,
        lr_decay: float,
        epochs: int,
        weight_decay: float,
        initial: Mapping[str, str | None] | None = None,
    ):
        judged_by = RetrievalEvaluation(**evaluation)
        super().__init__(judged_by, lr, min_lr, epochs, weight_decay, decay_all=True)
        self.save_hyperparameters()
        self.encoders = MixtureEncoders(vision, text, embed_dim, enc_id)
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)
        width = self.encoders.visual_encoder.embed_dim
        self.decoder = TextDecoder(text, width, bos_id, label_smoothing)
        share_layers(self.decoder.transformer, self.encoders.text_encoder, sharing)
        self.matching = ImageTextMatching(self.encoders.text_encoder.width, True, "local", floor)
        self.contrast = ImageTextContrast(queue_size, embed_dim, temperature, "local")

    def load_text(self, source: str) -> list[KeyReport]:
        """BERT for the encoder and the decoder, which have new words."""
        texts = self.encoders.text_encoder, self.decoder.transformer
        return [load_hugging_face(text, source, self.decoder.head, NEW_WORDS) for text in texts]

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        alpha = self.momentum_encoders.weight(self, batch_idx)
        images, text_encoder = batch["images"], self.encoders.text_encoder
        ids, mask = batch["input_ids"], batch["attention_mask"]
        identities = torch.arange(len(ids), device=self.device) + rank() * len(ids)
        with torch.no_grad():
            self.contrast.temp.clamp_(*TEMPERATURES)

        image_tokens, image = self.encoders.encode_image(images)
        grounded_ids, text = self.encoders.encode_text(ids, mask)

        self.momentum_encoders.follow(self.encoders)
        teacher: Any = self.momentum_encoders.module
        with torch.no_grad():
            image_m = teacher.encode_image(images)[1]
            text_m = teacher.encode_text(ids, mask)[1]

        targets = self.contrast.targets(identities, queued=False)
        loss_ita, i2t, t2i = self.contrast((image, text), (image_m, text_m), targets, alpha)
        draws = self.step_draws("negatives", len(ids), 2)
        negatives = self.matching.mine(i2t, t2i, self.contrast.positives(identities), draws)
        self.contrast.enqueue(image_m, text_m, identities)

        matched, context = self.matching.fuse(
            text_encoder, image_tokens, grounded_ids, mask, negatives
        )
        loss_itm = matching_loss(self.matching.head(matched), len(ids))
        if not self.shares_projections:
            context = self.decoder.transformer.project(image_tokens)
        loss_lm = self.decoder(ids, mask, context).mean()

        self.log_train({"temperature": self.contrast.temp.detach(), "alpha": alpha})
        losses = {"loss_ita": loss_ita, "loss_itm": loss_itm, "loss_lm": loss_lm}
        return self.total_loss(losses, {}, batch["indices"])

    @property
    def shares_projections(self) -> bool:
        """Whether the decoder looks at an image by the same keys and values as the encoder."""
        mine, theirs = self.decoder.transformer, self.encoders.text_encoder
        return mine.layers[0].cross_attention is theirs.layers[0].cross_attention

    def rate(self, epoch: int, iteration: int) -> float:
        p = self.hparams
        rates = {name: p[name] for name in ("lr", "min_lr", "warmup_lr", "warmup_steps")}
        return decay_by_epoch(epoch, iteration, **rates, decay=p["lr_decay"])
