"""Fine-tuning for image-text retrieval, and for weakly supervised grounding.

Source: docs/papers/albef.md, section 3.7; salesforce/ALBEF@b9727e4
`models/model_retrieval.py:ALBEF.forward`.
"""

from typing import Any

import torch
from torch import Tensor

from methods.albef.alignment import Alignment
from methods.albef.training import Batch
from shared.losses.image_text import matching_loss


class Retrieval(Alignment):
    """ITA + ITM, where all captions of an image are its positives, those in the queue, too.

    The temperature is not clamped. Without distillation (alpha 0) the momentum features are still
    the keys. See `Alignment` for the arguments.
    """

    def __init__(self, **alignment: Any):
        super().__init__(masked_lm=False, **alignment)
        self.save_hyperparameters()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        alpha = self.distillation_weight(batch_idx)
        images, (ids, mask), identities = batch["images"], self.texts(batch), batch["image_ids"]
        image_tokens, image = self.encoders.encode_image(images)
        text_tokens, text = self.encoders.encode_text(ids, mask)

        self.update_momentum()
        teacher: Any = self.momentum_encoders.module
        with torch.no_grad():
            image_m = teacher.encode_image(images)[1]
            text_m = teacher.encode_text(ids, mask)[1]

        targets = self.contrast_targets(identities, queued=True)
        loss_ita, i2t, t2i = self.contrast((image, text), (image_m, text_m), targets, alpha)
        negatives = self.mine_negatives(i2t, t2i, identities)
        self.enqueue(image_m, text_m, identities)

        matched, _ = self.fuse(image_tokens, text_tokens, mask, negatives)
        loss_itm = matching_loss(self.itm_head(matched), len(ids))
        self.log_train({"temperature": self.temp.detach(), "alpha": alpha})
        return self.total_loss({"loss_ita": loss_ita, "loss_itm": loss_itm}, {}, batch["indices"])
