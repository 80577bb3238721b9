"""Contrast of images and texts with momentum features and queues, softened by the momentum model.

Shapes: B pairs of this rank, C pairs that they are contrasted with, E joint dimension, Q queue.
Source: docs/papers/albef.md, sections 3.1 (items 5 to 8), 3.2 and 3.7; salesforce/ALBEF@b9727e4
`models/model_pretrain.py`, `models/model_retrieval.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.distributed import all_gather
from shared.losses.contrastive import similarity_logits, soft_target_nce
from shared.losses.image_text import multi_positive_targets, soften
from shared.nn.queue import FeatureQueue


def among_ranks(negatives: str) -> bool:
    """Whether `negatives` are those of all ranks ("global") or this rank's ("local")."""
    if negatives not in ("local", "global"):
        raise ValueError(f'negatives must be "local" or "global", got {negatives!r}')
    return negatives == "global"


class ImageTextContrast(nn.Module):
    """Queues of Q pairs and the learned temperature of the contrastive loss (ITA in ALBEF's code,
    ITC in its paper); `negatives` of the batch are "local", as in the official code, or "global".
    """

    def __init__(self, queue_size: int, embed_dim: int, temperature: float, negatives: str):
        super().__init__()
        self.among_ranks = among_ranks(negatives)
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        # One queue of pairs: `features` are those of the images. It starts with random directions.
        self.queue = FeatureQueue(
            queue_size, embed_dim, {"text": embed_dim, "idx": 1}, integers=["idx"]
        )
        for features in (self.queue.features, self.queue["text"]):
            features.copy_(F.normalize(torch.randn(queue_size, embed_dim), dim=1))
        self.queue["idx"].fill_(-100)

    def forward(
        self,
        features: tuple[Tensor, Tensor],
        momentum_features: tuple[Tensor, Tensor],
        targets: Tensor,
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each image's contrast with all texts of batch and queue, and the other way
        round, and the logits image to text and text to image, (B, C + Q).

        Features of images and texts are (B, E) each; keys are momentum ones. Rows of the targets
        (B, C + Q), equal for both directions, sum to 1; alpha of them are the momentum model's.
        """
        (image, text), (image_m, text_m) = features, momentum_features
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
        return all_gather(x) if self.among_ranks else x

    def positives(self, identities: Tensor) -> Tensor:
        """(B, C) whether a candidate is of the same identity."""
        return identities[:, None] == self.candidates(identities)[None]

    def targets(self, identities: Tensor, queued: bool) -> Tensor:
        """(B, C + Q): evenly over all pairs of the same identity, in the queue too if `queued`."""
        of_queue = identities[:, None] == self.queue["idx"][:, 0][None]
        positives = torch.cat([self.positives(identities), of_queue & queued], dim=1)
        return multi_positive_targets(positives)

    def enqueue(self, image: Tensor, text: Tensor, identities: Tensor) -> None:
        """Write momentum features (B, E) of all ranks with their identities (B,) to the queue."""
        self.queue.enqueue(
            all_gather(image), text=all_gather(text), idx=all_gather(identities[:, None])
        )
