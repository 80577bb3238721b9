"""Fine-tuning for image-text retrieval, and for weakly supervised grounding.

Source: docs/papers/albef.md, section 3.7; salesforce/ALBEF@b9727e4
`models/model_retrieval.py:ALBEF.forward`.
"""

from typing import Any

import torch
from torch import Tensor

from methods.albef.grounding import GroundingEvaluation
from shared.losses.image_text import matching_loss
from shared.nn.image_text import ImageTextEncoders
from shared.tasks.image_text_contrast import ImageTextContrast
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from shared.tasks.momentum_teacher import MomentumTeacher


class Retrieval(ImageTextMethod):
    """ITA + ITM, where all captions of an image are its positives, those in the queue, too.

    The temperature is not clamped. Without distillation (alpha 0) the momentum features are still
    the keys. Grounding trains alike, on expressions, and is evaluated by where the model looks.

    Args:
        vision, text, embed_dim: see `ImageTextEncoders`.
        queue_size, temperature: see `ImageTextContrast`.
        hard_negatives, negatives: see `ImageTextMatching`; `negatives` is for both losses.
        encoder_momentum, alpha, ramp: see `MomentumTeacher`.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: negatives are functions of (seed, step, rank).
        cam_mode, cam_layer: see `GroundingEvaluation`; null evaluates by retrieval.
    """

    predicts = "embeddings"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        queue_size: int,
        temperature: float,
        hard_negatives: bool,
        negatives: str,
        encoder_momentum: float,
        alpha: float,
        ramp: bool,
        evaluation: dict[str, Any],
        seed: int,
        cam_mode: str | None = None,
        cam_layer: int = 8,
        **frame: Any,
    ):
        grounding = GroundingEvaluation(cam_mode, cam_layer) if cam_mode is not None else None
        super().__init__(grounding or RetrievalEvaluation(**evaluation), **frame)
        self.save_hyperparameters()
        self.encoders = ImageTextEncoders(vision, text, embed_dim, masked_lm=False)
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)
        width = self.encoders.text_encoder.width
        self.matching = ImageTextMatching(width, hard_negatives, negatives)
        self.contrast = ImageTextContrast(queue_size, embed_dim, temperature, negatives)
        if grounding:
            grounding.check_layer(self.encoders)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        alpha = self.momentum_encoders.weight(self, batch_idx)
        images, identities = batch["images"], batch["image_ids"]
        text_encoder = self.encoders.text_encoder
        ids, mask = self.matching.texts(batch, text_encoder.pad_id)
        image_tokens, image = self.encoders.encode_image(images)
        text_tokens, text = self.encoders.encode_text(ids, mask)

        self.momentum_encoders.follow(self.encoders)
        teacher: Any = self.momentum_encoders.module
        with torch.no_grad():
            image_m = teacher.encode_image(images)[1]
            text_m = teacher.encode_text(ids, mask)[1]

        targets = self.contrast.targets(identities, queued=True)
        loss_ita, i2t, t2i = self.contrast((image, text), (image_m, text_m), targets, alpha)
        draws = self.step_draws("negatives", len(ids), 2)
        negatives = self.matching.mine(i2t, t2i, self.contrast.positives(identities), draws)
        self.contrast.enqueue(image_m, text_m, identities)

        matched, _ = self.matching.fuse(text_encoder, image_tokens, text_tokens, mask, negatives)
        loss_itm = matching_loss(self.matching.head(matched), len(ids))
        self.log_train({"temperature": self.contrast.temp.detach(), "alpha": alpha})
        return self.total_loss({"loss_ita": loss_ita, "loss_itm": loss_itm}, {}, batch["indices"])
