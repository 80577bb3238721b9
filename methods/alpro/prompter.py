"""The prompter's training, the first of two stages: contrast of videos and texts alone.

Source: docs/papers/alpro.md, sections 3.6 and 3.10; salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:Prompter`, `src/pretrain/run_pretrain_contrastive_only.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from methods.alpro.network import VideoTextContrast, VideoTextEncoders
from methods.alpro.prompting import unimodal
from shared.checkpoints.official import KeyReport
from shared.checkpoints.pretrained_text import load_hugging_face
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod, images_and_texts
from shared.tasks.image_text_retrieval import RetrievalEvaluation


class Prompter(ImageTextMethod):
    """VTC of the text layers below `fusion_layer`; arguments as of `Pretraining`."""

    accumulates = True
    predicts = "embeddings"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        temperature: float,
        evaluation: dict[str, Any],
        initial: Mapping[str, Any] | None = None,
        **frame: Any,
    ):
        by_similarity = RetrievalEvaluation(**{**evaluation, "rerank": False})
        super().__init__(by_similarity, **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = VideoTextEncoders(vision, unimodal(text), embed_dim, masked_lm=False)
        self.contrast = VideoTextContrast(temperature)

    def load_text(self, source: str) -> list[KeyReport]:
        """BERT for the layers that there are."""
        text_encoder = self.encoders.text_encoder
        return [load_hugging_face(text_encoder, source, None, self.new_words, lower_layers=True)]

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        clips, ids, mask = images_and_texts(batch)
        video = self.encoders.encode_image(clips)[1]
        text = self.encoders.encode_text(ids, mask)[1]
        loss = self.contrast(video, text)
        self.log_train({"temperature": self.contrast.temp.detach()})
        return self.total_loss({"loss_vtc": loss}, {}, batch["indices"])
