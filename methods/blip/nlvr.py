"""Fine-tuning for NLVR2: is a text true of two images?

Source: docs/papers/blip.md, section 3.12; salesforce/BLIP@056a169 `models/blip_nlvr.py`,
`models/nlvr_encoder.py`.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from methods.blip.network import PairNetwork
from shared.evaluation.accuracy import percent_correct
from shared.tasks.image_text_method import (
    ClassAccuracy,
    ImageTextBatch,
    ImageTextMethod,
)

CLASSES = ("false", "true")


class NLVR(ImageTextMethod):
    """Cross-entropy of "true" and "false". Arguments: see `PairNetwork` and `ImageTextMethod`."""

    accumulates = True

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        merge_from: int,
        enc_id: int,
        **frame: Any,
    ):
        super().__init__(ClassAccuracy(CLASSES), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = PairNetwork(vision, text, len(CLASSES), merge_from, enc_id)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        logits, labels = self.outcome(batch)
        self.log_train({"accuracy": percent_correct(logits, labels)})
        loss = F.cross_entropy(logits.float(), labels)
        return self.total_loss({"loss_cls": loss}, {}, batch["indices"])
