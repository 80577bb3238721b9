"""Negative controls of ALPRO's claims."""

from torch import Tensor

from methods.alpro.module import Pretraining


class MisalignedPairs(Pretraining):
    """VTC aligns each video with another pair's text; the other losses are unchanged."""

    def contrasted_texts(self, features: Tensor) -> Tensor:
        return features.roll(1, dims=0)


class PermutedEntities(Pretraining):
    """PEM predicts, in the region of each clip, what the prompter sees in another clip's."""

    def entity_labels(self, regions: Tensor, kind: str) -> Tensor:
        return super().entity_labels(regions, kind).roll(1, dims=0)
