"""Fine-tuning for captions: the decoder of pre-training writes about images.

Shapes: B images of N patches and width C, T captions, L tokens, M of the longest caption written.
Source: docs/papers/blip.md, sections 3.10 and 7.3; salesforce/BLIP@056a169
`models/blip.py:BLIP_Decoder`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from methods.blip.network import TextDecoder
from shared.distributed import gather_objects
from shared.nn.generation import Generation
from shared.nn.vision_transformer import VisionTransformer
from shared.randomness import torch_generator
from shared.tasks.image_text_method import Evaluation, ImageTextBatch, ImageTextMethod


class CaptionLikelihood(Evaluation):
    """The loss of a module's `losses(batch)` over all captions of a split, token by token."""

    def __init__(self) -> None:
        self.sums = [0.0, 0]

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        losses = module.losses(batch).double()
        self.sums = [self.sums[0] + float(losses.sum()), self.sums[1] + len(losses)]

    def metrics(self, module: Any, testing: bool) -> dict[str, float]:
        """`loss_lm`, the mean over tokens of all ranks, and their number, `evaluated`."""
        shares, self.sums = gather_objects(self.sums), [0.0, 0]
        total, tokens = (sum(part) for part in zip(*shares, strict=True))
        return {"loss_lm": total / max(tokens, 1), "evaluated": float(tokens)}


class Captioning(ImageTextMethod):
    """Learns to write captions after a prompt, and writes them by beam search or by sampling.

    Args:
        vision, text, bos_id, label_smoothing: see `TextDecoder`; it looks at all image tokens.
        prompt_ids: of the prompt's words, which begin every caption in training, too.
        generation: arguments of `Generation`; lengths count [DEC] and the prompt.
        seed: what is sampled is a function of it and of an image's place in the data.
    """

    predicts = "captions"

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        bos_id: int,
        prompt_ids: Sequence[int],
        label_smoothing: float,
        generation: dict[str, Any],
        seed: int,
        **frame: Any,
    ):
        super().__init__(CaptionLikelihood(), **frame, decay_all=True)
        self.save_hyperparameters()
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        self.decoder = TextDecoder(text, width, bos_id, label_smoothing)
        self.generation = Generation(**generation)

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        loss_lm = self.losses(batch).mean()
        return self.total_loss({"loss_lm": loss_lm}, {}, batch["indices"])

    def losses(self, batch: ImageTextBatch) -> Tensor:
        """(S,) losses of the tokens after the prompt, of captions (T, L); in an evaluation several
        may belong to an image, `text_image` (T,)."""
        context = self.decoder.transformer.project(self.visual_encoder(batch["images"]))
        if "text_image" in batch:
            rows = (batch["text_image"][:, None] == batch["indices"]).long().argmax(dim=1)
            context = [keys_values.rows(rows) for keys_values in context]
        prompt_length = 1 + len(self.hparams["prompt_ids"])
        return self.decoder(batch["input_ids"], batch["attention_mask"], context, prompt_length)

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """(B, M) ids of a caption of each image, [DEC] and prompt in front, padded."""
        context = self.decoder.transformer.project(self.visual_encoder(batch["images"]))
        uniforms = self.caption_draws(batch["indices"]) if self.generation.sample else None
        prompt = self.hparams["prompt_ids"]
        return self.decoder.write(context, prompt, self.generation, uniforms).sequences

    def caption_draws(self, indices: Tensor) -> Tensor:
        """(B, M) uniform numbers for the captions of images of these numbers (B,)."""
        rows = []
        for index in indices.tolist():
            generator = torch_generator(self.hparams["seed"], index, "caption")
            rows.append(torch.rand(self.generation.max_length, generator=generator))
        return torch.stack(rows).to(self.device)
