"""Fine-tuning for captions: the decoder of pre-training writes about images.

Shapes: B images of N patches and width C, L tokens, M of the longest caption that is written.
Source: docs/papers/blip.md, sections 3.10 and 7.3; salesforce/BLIP@056a169
`models/blip.py:BLIP_Decoder`, `train_caption.py:evaluate`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from methods.blip.network import TextDecoder
from shared.distributed import gather_objects
from shared.evaluation.captions import caption_scores
from shared.files import write_json
from shared.nn.generation import Generation
from shared.nn.vision_transformer import VisionTransformer
from shared.randomness import torch_generator
from shared.tasks.image_text_method import Evaluation, ImageTextBatch, ImageTextMethod

log = logging.getLogger(__name__)
RESULTS = "caption_result.json"


class CaptionEvaluation(Evaluation):
    """Scores what a module writes about images by the references of its data, each image once over
    all ranks; the test also writes `caption_result.json` for a server. `words`: see
    `caption_scores`."""

    def __init__(self, words: Literal["ptb", "plain"]):
        if words not in ("ptb", "plain"):
            raise ValueError(f'words must be "ptb" or "plain", got {words!r}')
        self.words = words
        self.written: dict[int, list[int]] = {}

    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        ids = module.captions(batch)
        self.written |= dict(zip(batch["image_ids"].tolist(), ids.tolist(), strict=True))

    def metrics(self, module: Any, testing: bool) -> dict[str, float]:
        """Of captions with references `cider`, `bleu_4` and the others of `caption_scores`, and
        `cider_bleu_4`, by which the best epoch is chosen; and the number of images, `evaluated`."""
        shares, self.written = gather_objects(self.written), {}
        written = {number: ids for part in shares for number, ids in sorted(part.items())}
        data: Any = module.trainer.datamodule
        texts = data.tokenizer.decode(torch.tensor(list(written.values())))
        captions = dict(zip(written, texts, strict=True))
        if testing and module.trainer.is_global_zero:
            path = Path(module.trainer.default_root_dir) / RESULTS
            rows = [{"image_id": number, "caption": text} for number, text in captions.items()]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, rows, indent=None)  # what evaluators and servers take
            log.info("%d captions written: %s", len(captions), path)
        found = {"evaluated": float(len(captions))}
        references = data.references(data.hparams["test_split" if testing else "val_split"])
        if references is None:
            return found
        said = {number: references.captions[number] for number in captions}
        scores = caption_scores(captions, said, references.domains, self.words)
        for name, reason in scores.missing.items():
            log.warning("%s is left out: %s", name, reason)
        both = scores.metrics["cider"] + scores.metrics["bleu_4"]  # by which an epoch is chosen
        return found | scores.metrics | {"cider_bleu_4": both}


class Captioning(ImageTextMethod):
    """Learns to write captions after a prompt, and writes them by beam search or by sampling.

    Args:
        vision, text, bos_id, label_smoothing: see `TextDecoder`; it looks at all image tokens.
        prompt_ids: of the prompt's words, which begin every caption in training, too.
        generation: arguments of `Generation`; lengths count [DEC] and the prompt.
        words: see `CaptionEvaluation`.
        seed: what is sampled is a function of it and of an image's place in the data.
    """

    accumulates = True

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        bos_id: int,
        prompt_ids: Sequence[int],
        label_smoothing: float,
        generation: dict[str, Any],
        seed: int,
        words: Literal["ptb", "plain"] = "ptb",
        **frame: Any,
    ):
        super().__init__(CaptionEvaluation(words), **frame, decay_all=True)
        self.save_hyperparameters()
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        self.decoder = TextDecoder(text, width, bos_id, label_smoothing)
        self.generation = Generation(**generation)

    def on_fit_start(self) -> None:
        """Refuse data whose captions begin otherwise than what is written."""
        super().on_fit_start()
        opening = getattr(getattr(self.trainer, "datamodule", None), "opening", None)
        own = [self.hparams["bos_id"], *self.hparams["prompt_ids"]]
        if opening is not None and opening.tolist() != own:
            told = f"[DEC] and data.prompt are {opening.tolist()} in data.vocab"
            raise ValueError(f"{told}, but method.bos_id and prompt_ids are {own}")

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        prompt_length = 1 + len(self.hparams["prompt_ids"])
        texts = batch["input_ids"], batch["attention_mask"]
        losses = self.decoder(*texts, self.look(batch["images"]), prompt_length)
        return self.total_loss({"loss_lm": losses.mean()}, {}, batch["indices"])

    def look(self, images: Tensor) -> list[Any]:
        """What the decoder sees of images (B, 3, S, S)."""
        return self.decoder.transformer.project(self.visual_encoder(images))

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        """(B, M) ids of a caption of each image, [DEC] and prompt in front, padded."""
        uniforms = self.caption_draws(batch["indices"]) if self.generation.sample else None
        return self.write(batch["images"], self.hparams["prompt_ids"], self.generation, uniforms)

    def write(
        self,
        images: Tensor,
        prompt: Sequence[int],
        settings: Generation,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """(B, M) ids as of `predict_step`, after the ids of any prompt and by any settings."""
        return self.decoder.write(self.look(images), prompt, settings, uniforms).sequences

    def captions(self, batch: ImageTextBatch) -> Tensor:
        """The ids of `predict_step` behind [DEC] and the prompt."""
        return self.predict_step(batch, 0)[:, 1 + len(self.hparams["prompt_ids"]) :]

    def caption_draws(self, indices: Tensor) -> Tensor:
        """(B, M) uniform numbers for the captions of images of these numbers (B,)."""
        rows = []
        for index in indices.tolist():
            generator = torch_generator(self.hparams["seed"], index, "caption")
            rows.append(torch.rand(self.generation.max_length, generator=generator))
        return torch.stack(rows).to(self.device)
