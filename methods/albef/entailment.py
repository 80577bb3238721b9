"""SNLI-VE: does the image entail the sentence, contradict it, or neither?

Source: docs/papers/albef.md, section 3.10; salesforce/ALBEF@b9727e4
`models/model_ve.py:ALBEF.forward`.
"""

from typing import Any

from torch import Tensor, nn

from methods.albef.classification import DistilledClassification
from methods.albef.model import classifier
from shared.nn.text_transformer import TextTransformer
from shared.nn.vision_transformer import VisionTransformer


class EntailmentNetwork(nn.Module):
    """Image and text encoder; a classifier on the text's class token.

    Args: vision, text: see `ImageTextEncoders`. classes: C.
    """

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], classes: int):
        super().__init__()
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        self.text_encoder = TextTransformer(**text, context_width=width)
        self.classifier = classifier(self.text_encoder.width, classes)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, L) -> logits (B, C)."""
        context = self.text_encoder.project(self.visual_encoder(images))
        return self.classifier(self.text_encoder(ids, mask, context)[:, 0])


class Entailment(DistilledClassification):
    """Fine-tuning for SNLI-VE. The official script has no ramp of alpha.

    Args:
        vision, text: see `ImageTextEncoders`.
        frame: see `MomentumDistilled`.
    """

    class_names = ("contradiction", "neutral", "entailment")

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], **frame: Any):
        super().__init__(EntailmentNetwork(vision, text, len(self.class_names)), **frame)
        self.save_hyperparameters()
