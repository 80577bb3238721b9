"""Weakly supervised grounding: retrieval's training on expressions, boxes only in the evaluation.

What the model looks at while it judges a pair (Grad-CAM) is compared with proposed boxes.
Source: docs/papers/albef.md, sections 3.7, 3.11 and 7; salesforce/ALBEF@b9727e4 `Grounding.py`,
`dataset/utils.py:grounding_eval`.
"""

from typing import Any

import torch
from torch import Tensor

from methods.albef.retrieval import Retrieval
from methods.albef.training import Batch
from shared.evaluation.attention_maps import (
    Saliency,
    check_block,
    check_cross_attention,
    contrast_saliency,
    match_saliency,
)
from shared.evaluation.grounding import GroundingAccuracy, ground


class Grounding(Retrieval):
    """`Retrieval` that is evaluated by where it looks.

    Args:
        cam_mode: "itm": cross-attention of a text layer, for the matching logit; "itc":
            self-attention of a block of the vision transformer, for the similarity.
        cam_layer: that layer, counted over the whole text stack, or that block, from 0. Official: 8
            of 12, the third with cross-attention; later ones localise badly.
        alignment: see `Alignment`.

    Evaluation batches, beside images and texts: `image_ids` (B,), equal for the same image (which
    is then encoded once), `sizes` (B, 2) height and width of the image that boxes refer to, `boxes`
    (B, 4) what is meant, `proposals`, a list of (P, 4), and `splits`, a list of names; see
    `shared.data.image_text.referring`.
    """

    def __init__(self, cam_mode: str = "itm", cam_layer: int = 8, **alignment: Any):
        if cam_mode not in ("itm", "itc"):
            raise ValueError(f'cam_mode must be "itm" or "itc", got {cam_mode!r}')
        super().__init__(**alignment)
        self.cam_mode, self.cam_layer = cam_mode, cam_layer
        if cam_mode == "itm":
            check_cross_attention(self.encoders.text_encoder, cam_layer)
        else:
            check_block(self.encoders.visual_encoder, cam_layer)
        self.accuracy = GroundingAccuracy()

    def saliency(self, batch: Batch) -> Saliency:
        """What each expression (B,) looks at; needs `images`, `image_ids` and the texts."""
        images, ids, mask = batch["images"], batch["input_ids"], batch["attention_mask"]
        if self.cam_mode == "itc":
            return contrast_saliency(self, images, ids, mask, self.cam_layer)
        rows, of_text = first_rows(batch["image_ids"])
        with torch.no_grad():
            image_tokens = self.encoders.encode_image(images[rows])[0][of_text]
        return match_saliency(self, image_tokens, ids, mask, self.cam_layer)

    def cams(self, batch: Batch) -> Tensor:
        """(B, g, g) maps of where the expressions are."""
        mask = batch["attention_mask"] if self.cam_mode == "itm" else None
        return self.saliency(batch).whole(mask)

    def evaluate(self, batch: Batch) -> None:
        """Grounds the batch's expressions and keeps how well."""
        sizes, boxes, indices = (batch[key].tolist() for key in ("sizes", "boxes", "indices"))
        for n, cam in enumerate(self.cams(batch)):
            height, width = sizes[n]
            found = ground(cam, (height, width), batch["proposals"][n], boxes[n])
            self.accuracy.add(indices[n], batch["splits"][n], found.iou)

    def percentages(self, stage: str) -> dict[str, float]:
        return {f"{stage}/{name}": 100 * part for name, part in self.accuracy.compute().items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.percentages("val"))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.percentages("test"))


def first_rows(identities: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) -> the row of each distinct value, and for each of the B which of those it is."""
    distinct, inverse = identities.unique(return_inverse=True)
    rows = torch.arange(len(identities), device=identities.device)
    first = rows.new_zeros(len(distinct))
    return first.scatter_reduce(0, inverse, rows, "amin", include_self=False), inverse
