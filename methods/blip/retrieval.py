"""Fine-tuning for image-text retrieval; the matching head is the filter of CapFilt.

Source: docs/papers/blip.md, section 3.9; salesforce/BLIP@056a169
`models/blip_retrieval.py:BLIP_Retrieval.forward`.
"""

from typing import Any

import torch
from torch import Tensor

from methods.blip.module import TEMPERATURES
from methods.blip.network import MixtureEncoders
from shared.losses.contrastive import similarity_logits
from shared.losses.image_text import matching_loss
from shared.tasks.image_text_contrast import ImageTextContrast
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from shared.tasks.momentum_teacher import MomentumTeacher


class Retrieval(ImageTextMethod):
    """ITC + ITM, where all captions of an image are its positives, those in the queue, too.

    Args:
        vision, text, embed_dim, enc_id: see `MixtureEncoders`.
        queue_size, temperature: see `ImageTextContrast`.
        negatives: those of matching: among the pairs of all ranks ("global", COCO) or of this one
            ("local", Flickr30k); they are drawn by the similarity of online features.
        encoder_momentum, alpha, ramp: see `MomentumTeacher`.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: negatives are functions of (seed, step, rank).
    """

    predicts = "embeddings"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        enc_id: int,
        queue_size: int,
        temperature: float,
        negatives: str,
        encoder_momentum: float,
        alpha: float,
        ramp: int,
        evaluation: dict[str, Any],
        seed: int,
        **frame: Any,
    ):
        super().__init__(RetrievalEvaluation(**evaluation), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = MixtureEncoders(vision, text, embed_dim, enc_id)
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)
        self.matching = ImageTextMatching(self.encoders.text_encoder.width, True, negatives)
        self.contrast = ImageTextContrast(queue_size, embed_dim, temperature, "local")

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        alpha = self.momentum_encoders.weight(self, batch_idx)
        images, identities = batch["images"], batch["image_ids"]
        text_encoder = self.encoders.text_encoder
        ids, mask = self.matching.texts(batch, text_encoder.pad_id)
        with torch.no_grad():
            self.contrast.temp.clamp_(*TEMPERATURES)

        image_tokens, image = self.encoders.encode_image(images)
        grounded_ids, text = self.encoders.encode_text(ids, mask)

        self.momentum_encoders.follow(self.encoders)
        teacher: Any = self.momentum_encoders.module
        with torch.no_grad():
            image_m = teacher.encode_image(images)[1]
            text_m = teacher.encode_text(ids, mask)[1]

        targets = self.contrast.targets(identities, queued=True)
        loss_ita, _, _ = self.contrast((image, text), (image_m, text_m), targets, alpha)
        self.contrast.enqueue(image_m, text_m, identities)

        matched, _ = self.matching.fuse(
            text_encoder, image_tokens, grounded_ids, mask, self.negatives(image, text, identities)
        )
        loss_itm = matching_loss(self.matching.head(matched), len(ids))
        self.log_train({"temperature": self.contrast.temp.detach(), "alpha": alpha})
        return self.total_loss({"loss_ita": loss_ita, "loss_itm": loss_itm}, {}, batch["indices"])

    @torch.no_grad()
    def negatives(self, image: Tensor, text: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
        """A negative image for each text and a negative text for each image, (B,) candidates each,
        by the similarity of online features (B, E), among other images than theirs."""
        candidates, temperature = self.matching.candidates, self.contrast.temp
        i2t = similarity_logits(image, candidates(text), temperature)
        t2i = similarity_logits(text, candidates(image), temperature)
        positives = identities[:, None] == candidates(identities)[None]
        draws = self.step_draws("negatives", len(identities), 2)
        return self.matching.mine(i2t, t2i, positives, draws)
