"""Fine-tuning for retrieval between videos and texts.

Source: docs/papers/alpro.md, sections 3.3, 3.4 and 7; salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:AlproForVideoTextRetrieval`, `src/tasks/run_video_retrieval.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from methods.alpro.network import VideoTextContrast, VideoTextEncoders
from shared.losses.image_text import matching_loss
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod, images_and_texts
from shared.tasks.image_text_retrieval import RetrievalEvaluation


class Retrieval(ImageTextMethod):
    """VTC + VTM; arguments as of `Pretraining`."""

    accumulates = True
    predicts = "embeddings"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        temperature: float,
        evaluation: dict[str, Any],
        seed: int,
        initial: Mapping[str, Any] | None = None,
        **frame: Any,
    ):
        super().__init__(RetrievalEvaluation(**evaluation), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = VideoTextEncoders(vision, text, embed_dim, masked_lm=False)
        self.contrast = VideoTextContrast(temperature)
        width = self.encoders.text_encoder.width
        self.matching = ImageTextMatching(width, hard_negatives=True, negatives="local")

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        clips, ids, mask = images_and_texts(batch)
        video_tokens, video = self.encoders.encode_image(clips)
        text_tokens, text = self.encoders.encode_text(ids, mask)
        loss_vtc = self.contrast(video, text)

        draws = self.step_draws("negatives", len(ids), 2)
        negatives = self.contrast.negatives(self.matching, video, text, draws)
        text_encoder = self.encoders.text_encoder
        matched, _ = self.matching.fuse(text_encoder, video_tokens, text_tokens, mask, negatives)
        loss_vtm = matching_loss(self.matching.head(matched), len(ids))
        self.log_train({"temperature": self.contrast.temp.detach()})
        return self.total_loss({"loss_vtm": loss_vtm, "loss_vtc": loss_vtc}, {}, batch["indices"])
