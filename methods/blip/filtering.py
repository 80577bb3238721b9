"""CapFilt's filter: a text stays if the matching head says that it belongs to its image.

Shapes: B images with a text each, L tokens.
Source: docs/papers/blip.md, section 3.8; salesforce/BLIP@056a169 `models/blip_itm.py:BLIP_ITM`. The
official repository has no script of CapFilt.
"""

import torch
from torch import Tensor

from methods.blip.module import Pretraining
from methods.blip.network import opened
from methods.blip.retrieval import Retrieval


class PairFilter:
    """Judges pairs by a module fine-tuned for retrieval.

    `enc_token` begins texts with [ENC], as in training and evaluation; the official scorer leaves
    [CLS] there, as if the text were read by itself, and its scores differ.
    """

    def __init__(
        self, module: Retrieval | Pretraining, threshold: float = 0.5, enc_token: bool = True
    ):
        self.module, self.threshold, self.enc_token = module, threshold, enc_token

    @torch.no_grad()
    def logits(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 2) matching logits of images (B, 3, S, S) and texts (B, L); column 1 is "match"."""
        encoders, matching = self.module.encoders, self.module.matching
        tokens, _ = encoders.encode_image(images)
        if self.enc_token:
            ids = opened(ids, encoders.enc_id)
        return matching.logits(encoders.text_encoder, tokens, ids, mask).float()

    def probabilities(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) probabilities that image and text match."""
        return self.logits(images, ids, mask).softmax(dim=1)[:, 1]

    def keeps(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) whether a text stays: each is judged alone, whatever other texts its image has."""
        return self.probabilities(images, ids, mask) > self.threshold


def bootstrapped_pairs(web: Tensor, synthetic: Tensor) -> Tensor:
    """(M, 2) the pairs of the new data set, from what is kept (B,) of the web's and of the
    synthetic texts: the number of the image, and 0 for its web text or 1 for its synthetic one. An
    image has no, one or two pairs, the web's first."""
    return torch.stack([web, synthetic], dim=1).nonzero()
