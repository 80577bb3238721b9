"""Negative controls of ALBEF's claims."""

from torch import Tensor

from methods.albef.module import Pretraining


class MisalignedPairs(Pretraining):
    """ITA aligns each image with another pair's text; ITM and MLM are unchanged."""

    def contrasted_texts(self, features: Tensor) -> Tensor:
        return features.roll(1, dims=0)
