"""Negative controls of PB-OVD's claims and its ablations."""

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.pb_ovd.module import OpenVocabularyDetector
from shared.tasks.detection import Selection


class ShuffledTexts(OpenVocabularyDetector):
    """Each training class is named by the text of another, so that regions are embedded where no
    name tells anything of a class that is asked for later."""

    def attach(self, datamodule: object) -> None:
        super().attach(datamodule)
        self.texts[1:] = self.texts[1:].roll(1, dims=0)


class UnitTexts(OpenVocabularyDetector):
    """Texts are of length 1, as in later work, though without a temperature: the length of a text's
    embedding no longer enters the logits."""

    def attach(self, datamodule: object) -> None:
        super().attach(datamodule)
        self.texts.copy_(F.normalize(self.texts, dim=1))

    @torch.no_grad()
    def detect(self, batch: dict, texts: Tensor, selection: Selection | None = None):
        return super().detect(batch, F.normalize(texts, dim=1), selection)
