"""The negative control of the claim: MoPro asking the prototypes of other classes."""

from torch import Tensor

from methods.mopro.module import MoPro


class ShuffledPrototypes(MoPro):
    """Embeddings are compared with the prototypes of other classes: logits shifted by K / 2."""

    def prototype_logits(self, query: Tensor) -> Tensor:
        logits = super().prototype_logits(query)
        return logits.roll(logits.shape[1] // 2, dims=1)
