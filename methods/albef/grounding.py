"""Weakly supervised grounding: retrieval's training on expressions, boxes only in the evaluation.

What the model looks at while it judges a pair (Grad-CAM) is compared with proposed boxes.
Source: docs/papers/albef.md, sections 3.7, 3.11 and 7; salesforce/ALBEF@b9727e4 `Grounding.py`,
`dataset/utils.py:grounding_eval`.
"""

from typing import Any

import torch
from torch import Tensor

from shared.distributed import gather_objects
from shared.evaluation.attention_maps import (
    Saliency,
    contrast_saliency,
    looked_at,
    match_saliency,
)
from shared.evaluation.features import first_rows
from shared.evaluation.grounding import accuracies, ground
from shared.nn.image_text import ImageTextEncoders
from shared.tasks.image_text_method import Evaluation, ImageTextBatch


class GroundingEvaluation(Evaluation):
    """Grounds expressions by where an `ImageTextModel` looks.

    Args:
        cam_mode: "itm": cross-attention of a text layer, for the matching logit; "itc":
            self-attention of a block of the vision transformer, for the similarity.
        cam_layer: that layer of the whole text stack, or that block, from 0. Official: 8 of 12, the
            third with cross-attention; later ones localise badly.

    Batches hold, beside images and texts: `image_ids` (B,), equal for the same image (which is then
    encoded once), `sizes` (B, 2) height and width of the image that boxes refer to, `boxes` (B, 4)
    what is meant, `proposals`, B of (P, 4), and `splits`; see `shared.data.image_text.referring`.
    """

    def __init__(self, cam_mode: str, cam_layer: int):
        if cam_mode not in ("itm", "itc"):
            raise ValueError(f'cam_mode must be "itm" or "itc", got {cam_mode!r}')
        self.cam_mode, self.cam_layer = cam_mode, cam_layer
        self.seen: dict[int, tuple[str, float]] = {}  # split and IoU of each expression

    def check_layer(self, encoders: ImageTextEncoders) -> None:
        """Raise ValueError if there is no such layer or block."""
        looked_at(encoders, "matching" if self.cam_mode == "itm" else "similarity", self.cam_layer)

    def saliency(self, module: Any, batch: ImageTextBatch) -> Saliency:
        """What each expression (B,) looks at; needs `images`, `image_ids` and the texts."""
        images, ids, mask = batch["images"], batch["input_ids"], batch["attention_mask"]
        if self.cam_mode == "itc":
            return contrast_saliency(module, images, ids, mask, self.cam_layer)
        rows, of_text = first_rows(batch["image_ids"])
        with torch.no_grad():
            image_tokens = module.encoders.encode_image(images[rows])[0][of_text]
        return match_saliency(module, image_tokens, ids, mask, self.cam_layer)

    def cams(self, module: Any, batch: ImageTextBatch) -> Tensor:
        """(B, g, g) maps of where the expressions are."""
        mask = batch["attention_mask"] if self.cam_mode == "itm" else None
        return self.saliency(module, batch).whole(mask)

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        sizes, boxes, indices = (batch[key].tolist() for key in ("sizes", "boxes", "indices"))
        for n, cam in enumerate(self.cams(module, batch)):
            height, width = sizes[n]
            grounded = ground(cam, (height, width), batch["proposals"][n], boxes[n])
            self.seen[indices[n]] = batch["splits"][n], grounded.iou

    def metrics(self, module: Any, testing: bool) -> dict[str, float]:
        """`<split>_d`, see `accuracies`, in percent."""
        seen = {n: judged for part in gather_objects(self.seen) for n, judged in part.items()}
        self.seen = {}
        found = accuracies((value for _, value in seen.values()), (s for s, _ in seen.values()))
        return {name: 100 * part for name, part in found.items()}
