"""The negative control of the claims: ICCL with centroids that belong to other classes."""

import torch
from torch import Tensor

from methods.iccl.module import ICCL
from shared.randomness import torch_generator


class PermutedCentroids(ICCL):
    """Every class gets the centroid of another one: of another in each step, because a fixed
    exchange would still give every class a target of its own."""

    def centroid_logits(self, embeddings: Tensor) -> Tensor:
        logits = super().centroid_logits(embeddings)
        generator = torch_generator(self.hparams["seed"], self.global_step, "sabotage")
        shift = 1 + int(torch.randint(logits.shape[1] - 1, (), generator=generator))
        return logits.roll(shift, dims=1)
