"""ALPRO's pre-training: align (VTC), match (VTM), predict words (MLM) and prompted entities (PEM).

Shapes: B clips of T frames and their texts on this rank, L tokens, N patches of a frame, D width,
E entities, J joint dimension.
Source: docs/papers/alpro.md, sections 3.1 to 3.9; salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:AlproForPretrain.forward`, `src/pretrain/run_pretrain_sparse.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from methods.alpro.losses import (
    TRIES,
    Rule,
    blackened,
    entity_loss,
    kept_clips,
    random_regions,
    region_means,
)
from methods.alpro.network import VideoTextContrast, VideoTextEncoders
from methods.alpro.official import load_prompter
from methods.alpro.prompting import EntityPrompter, read_entities
from shared.losses.image_text import matching_loss
from shared.losses.language import IGNORED, MaskDraws, mask_tokens, masked_lm_loss
from shared.nn.image_text import two_layer_head
from shared.tasks.image_text_matching import ImageTextMatching
from shared.tasks.image_text_method import ImageTextBatch, ImageTextMethod, images_and_texts
from shared.tasks.image_text_retrieval import RetrievalEvaluation

log = logging.getLogger(__name__)


class Pretraining(ImageTextMethod):
    """MLM + VTM + VTC + PEM, with equal weights.

    Args:
        vision, text, embed_dim: see `VideoTextEncoders`.
        temperature: see `VideoTextContrast`.
        align: whether VTC counts; without it negatives are drawn evenly, since no similarity is
            learned.
        prompt: whether PEM counts; without it there is no prompter.
        entities, num_entities: see `read_entities`.
        keep, threshold: see `kept_clips`.
        mean, std: of the pixels of the data, per channel; a black pixel is -mean / std.
        evaluation: arguments of `RetrievalEvaluation`.
        seed: masks, negatives and regions are functions of (seed, step, rank).
        initial: `{vision, text, new_words, prompter}`, what training starts from: see
            `load_initial` and `load_prompter`; null for random weights.
    """

    accumulates = True
    predicts = "embeddings"
    black: Tensor

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        embed_dim: int,
        temperature: float,
        align: bool,
        prompt: bool,
        entities: str | None,
        num_entities: int,
        keep: Rule,
        threshold: float,
        mean: Sequence[float],
        std: Sequence[float],
        mlm_probability: float,
        unk_id: int,
        cls_id: int,
        sep_id: int,
        mask_id: int,
        evaluation: dict[str, Any],
        seed: int,
        initial: Mapping[str, Any] | None = None,
        **frame: Any,
    ):
        super().__init__(RetrievalEvaluation(**evaluation), **frame, decay_all=True)
        self.save_hyperparameters()
        self.encoders = VideoTextEncoders(vision, text, embed_dim, masked_lm=True)
        width = self.encoders.text_encoder.width
        self.contrast = VideoTextContrast(temperature)
        self.matching = ImageTextMatching(width, hard_negatives=align, negatives="local")
        self.register_buffer("black", -torch.tensor(mean) / torch.tensor(std), persistent=False)
        self.prompter: EntityPrompter | None = None
        if prompt:
            self.prompter = EntityPrompter(vision, text, embed_dim, num_entities)
            self.entity_head = two_layer_head(width, num_entities, hidden=2 * width)

    def load_initial(self, initial: Mapping[str, Any]) -> None:
        super().load_initial(initial)
        if source := initial.get("prompter"):
            assert self.prompter is not None
            log.info("%s", load_prompter(self.prompter, source))

    def on_train_start(self) -> None:
        """Encode the prompts; a run that is continued has them in its checkpoint."""
        p = self.hparams
        if self.prompter is not None and self.global_step == 0:
            if p["entities"] is None:
                raise ValueError(
                    "method.entities is null: name a file of entities, or prompt=false"
                )
            entities = read_entities(p["entities"], p["num_entities"])
            self.prompter.name(entities, self.trainer.datamodule.tokenizer)  # type: ignore[attr-defined]

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        clips, ids, mask = images_and_texts(batch)
        text_encoder, size = self.encoders.text_encoder, len(ids)
        own = torch.arange(size, device=ids.device)
        masked_ids, labels = self.mask(ids)

        # Clean and masked texts pass the text layers together.
        video_tokens, video = self.encoders.encode_image(clips)
        masks = torch.cat([mask, mask])
        tokens, features = self.encoders.encode_text(torch.cat([ids, masked_ids]), masks)
        (text_tokens, masked_tokens), text = tokens.chunk(2), features[:size]
        (context,) = text_encoder.project(video_tokens)

        loss_vtc = self.contrast(video, self.contrasted_texts(text))
        draws = self.step_draws("negatives", size, 2)
        negatives = self.contrast.negatives(self.matching, video, text, draws)
        video_of_text, text_of_video = negatives

        pairs = text_encoder.fuse(text_tokens, mask, [context])
        predicted = text_encoder.fuse(masked_tokens, mask, [context], leading=ids.shape[1])
        texts = torch.cat([text_tokens, text_tokens[text_of_video]])
        masks = torch.cat([mask, mask[text_of_video]])
        rows = context.rows(torch.cat([video_of_text, own]))
        wrong = text_encoder.fuse(texts, masks, [rows], leading=1)
        matched = self.matching.head(torch.cat([pairs[:, 0], wrong[:, 0]]))

        selected = labels != IGNORED
        words = self.encoders.predict_words(predicted[selected])
        losses = {
            "loss_mlm": masked_lm_loss(words, labels[selected]),
            "loss_vtm": matching_loss(matched, size),
            "loss_vtc": loss_vtc,
        }
        if self.prompter is not None:
            patches = pairs[:, ids.shape[1] + 1 :]
            losses["loss_pem"] = self.entity_modelling(clips, patches, batch.get("kind", "video"))
        self.log_train({"temperature": self.contrast.temp.detach()})
        weights = {"loss_vtc": float(self.hparams["align"])}
        return self.total_loss(losses, weights, batch["indices"])

    def mask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Masked ids and labels of this step, (B, L) each."""
        p, pad_id = self.hparams, self.encoders.text_encoder.pad_id
        uniforms = self.step_draws("masks", *ids.shape, 4)
        draws = MaskDraws.from_uniforms(uniforms, p["text"]["vocab_size"], p["mlm_probability"])
        spared = p["unk_id"], p["sep_id"], p["mask_id"]
        return mask_tokens(ids, draws, pad_id, p["cls_id"], p["mask_id"], spared)

    def contrasted_texts(self, features: Tensor) -> Tensor:
        """The text features (B, J) paired with the videos, in order; a hook of controls."""
        return features

    def entity_modelling(self, clips: Tensor, patches: Tensor, kind: str) -> Tensor:
        """PEM of clips (B, T, 3, S, S), what the prompter sees in a region of each, by their fused
        patches (B, N, D)."""
        p, patch = self.hparams, self.encoders.visual_encoder.patch_size
        uniforms = self.step_draws("regions", len(clips), TRIES, 4)
        inside = random_regions(uniforms, clips.shape[-1], patch)
        labels = self.entity_labels(blackened(clips, inside, self.black), kind)
        kept = kept_clips(labels, p["keep"], p["threshold"])
        logits = self.entity_head(region_means(patches, inside))
        self.log_train({"kept": kept.float().mean()})
        return entity_loss(logits, labels, kept)

    def entity_labels(self, regions: Tensor, kind: str) -> Tensor:
        """Soft labels (B, E) of clips that show a region each; a hook of controls."""
        assert self.prompter is not None
        return self.prompter(regions, kind)
