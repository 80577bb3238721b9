"""ALBEF's pre-training: align (ITA), then fuse (ITM, MLM), softened by the momentum model.

Shapes: B pairs of this rank, L tokens, N patches, D text width, E joint dimension, Q queue.
Source: docs/papers/albef.md, section 3.1; salesforce/ALBEF@b9727e4
`models/model_pretrain.py:ALBEF.forward`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.distributed import rank
from shared.losses.image_text import matching_loss
from shared.losses.language import IGNORED, MaskDraws, mask_tokens, masked_lm_loss
from shared.nn.image_text import ImageTextEncoders
from shared.tasks.image_text_contrast import ImageTextContrast
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from shared.tasks.momentum_teacher import MomentumTeacher

TEMPERATURES = (0.001, 0.5)


class Pretraining(ImageTextMethod):
    """ITA + ITM + MLM, with equal weights.

    Args:
        vision, text, embed_dim: see `ImageTextEncoders`.
        queue_size, temperature: see `ImageTextContrast`.
        hard_negatives, negatives: see `ImageTextMatching`; `negatives` is for both losses.
        encoder_momentum, alpha, ramp: see `MomentumTeacher`.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: masks and negatives are functions of (seed, step, rank).
        mlm_probability: share of tokens to be predicted.
        initial: `{vision, text}`, what training starts from: see `load_initial`; null for random
            weights.
        objectives: of "ita", "itm" and "mlm", those that count; all three but in ablations.
        identity: which pairs are negatives of one another: "pair", all, as the official code;
            "image", those of different images (captions of one image are then all positives).
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
        mlm_probability: float,
        cls_id: int,
        mask_id: int,
        initial: Mapping[str, str | None] | None = None,
        objectives: Sequence[str] = ("ita", "itm", "mlm"),
        identity: str = "pair",
        **frame: Any,
    ):
        if not objectives or set(objectives) - {"ita", "itm", "mlm"}:
            raise ValueError(f"objectives are of ita, itm and mlm, got {list(objectives)}")
        if identity not in ("pair", "image"):
            raise ValueError(f'identity must be "pair" or "image", got {identity!r}')
        super().__init__(RetrievalEvaluation(**evaluation), **frame)
        self.save_hyperparameters()
        self.encoders = ImageTextEncoders(vision, text, embed_dim, masked_lm=True)
        self.momentum_encoders = MomentumTeacher(self.encoders, encoder_momentum, alpha, ramp)
        width = self.encoders.text_encoder.width
        self.matching = ImageTextMatching(width, hard_negatives, negatives)
        self.contrast = ImageTextContrast(queue_size, embed_dim, temperature, negatives)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        objectives = self.hparams["objectives"]
        alpha = self.momentum_encoders.weight(self, batch_idx)
        images, identities = batch["images"], self.identities(batch)
        text_encoder = self.encoders.text_encoder
        ids, mask = self.matching.texts(batch, text_encoder.pad_id)
        with torch.no_grad():
            self.contrast.temp.clamp_(*TEMPERATURES)
        # Clean and masked texts pass the text layers together, and share the image's keys above.
        # Where nobody asks for the masked ones, the clean ones pass alone.
        masked_ids, labels = self.mask(ids)
        clean, both = (ids, mask), (torch.cat([ids, masked_ids]), torch.cat([mask, mask]))
        fusing = set(objectives) != {"ita"}

        image_tokens, image = self.encoders.encode_image(images)
        tokens, features = self.encoders.encode_text(*(both if fusing else clean))
        text = self.contrasted_texts(features[: len(ids)])

        self.momentum_encoders.follow(self.encoders)
        teacher: Any = self.momentum_encoders.module
        with torch.no_grad():
            image_tokens_m, image_m = teacher.encode_image(images)
            distilling = fusing and alpha > 0
            tokens_m, features_m = teacher.encode_text(*(both if distilling else clean))
            text_m = self.contrasted_texts(features_m[: len(ids)])

        targets = self.contrast.targets(identities, queued=self.hparams["identity"] == "image")
        loss_ita, i2t, t2i = self.contrast((image, text), (image_m, text_m), targets, alpha)
        draws = self.step_draws("negatives", len(ids), 2)
        negatives = self.matching.mine(i2t, t2i, self.contrast.positives(identities), draws)
        self.contrast.enqueue(image_m, text_m, identities)

        losses = {"loss_ita": loss_ita}
        self.log_train({"temperature": self.contrast.temp.detach(), "alpha": alpha})
        if not fusing:
            return self.total_loss(losses, {}, batch["indices"])

        text_tokens, masked_tokens = tokens.chunk(2)
        matched, context = self.matching.fuse(
            text_encoder, image_tokens, text_tokens, mask, negatives
        )
        predicted = text_encoder.fuse(masked_tokens, mask, context)
        selected = labels != IGNORED
        words_m = None
        if distilling:
            with torch.no_grad():
                context_m = teacher.text_encoder.project(image_tokens_m)
                hidden_m = teacher.text_encoder.fuse(tokens_m[len(ids) :], mask, context_m)
                words_m = teacher.predict_words(hidden_m[selected])
        words = self.encoders.predict_words(predicted[selected])

        losses["loss_itm"] = matching_loss(self.matching.head(matched), len(ids))
        losses["loss_mlm"] = masked_lm_loss(words, labels[selected], words_m, alpha)
        # What is no objective still gets a gradient, of 0: no parameter is left out under DDP.
        weights = {name: float(name[5:] in objectives) for name in losses}
        return self.total_loss(losses, weights, batch["indices"])

    def contrasted_texts(self, features: Tensor) -> Tensor:
        """The text features (B, E) paired with the images, in order; a hook of controls."""
        return features

    def identities(self, batch: ImageTextBatch) -> Tensor:
        """(B,) integers, equal for pairs that are no negatives of one another."""
        if self.hparams["identity"] == "image":
            return batch["image_ids"]
        size = len(batch["images"])
        return torch.arange(size, device=self.device) + rank() * size

    def mask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Masked ids and labels of this step, (B, L) each."""
        p, pad_id = self.hparams, self.encoders.text_encoder.pad_id
        uniforms = self.step_draws("masks", *ids.shape, 4)
        draws = MaskDraws.from_uniforms(uniforms, p["text"]["vocab_size"], p["mlm_probability"])
        return mask_tokens(ids, draws, pad_id, p["cls_id"], p["mask_id"])
