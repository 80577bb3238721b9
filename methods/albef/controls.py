"""Negative controls of ALBEF's claims."""

from typing import Any

from torch import Tensor

from methods.albef.module import Pretraining
from shared.tasks.image_text_matching import ImageTextMatching


class MisalignedPairs(Pretraining):
    """ITA aligns each image with another pair's text; ITM and MLM are unchanged."""

    def contrasted_texts(self, features: Tensor) -> Tensor:
        return features.roll(1, dims=0)


class LeastSimilarNegatives(Pretraining):
    """ITM's negatives are drawn as the hard ones, but from what is least like the positive."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        width = self.encoders.text_encoder.width
        self.matching = LeastSimilar(width, arguments["hard_negatives"], arguments["negatives"])


class LeastSimilar(ImageTextMatching):
    def mine(
        self, i2t: Tensor, t2i: Tensor, positives: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        return super().mine(-i2t, -t2i, positives, draws)
