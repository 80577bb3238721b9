"""BLIP's mixture of encoder and decoder (MED): one text transformer in three modes.

Shapes: B texts, L tokens, D text width; images of N patches and width C, E joint dimension; S
predicted tokens, V words, M tokens of the longest text that is written.
Source: docs/papers/blip.md, sections 3.1, 3.5, 3.12 and 4; salesforce/BLIP@056a169 `models/med.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.losses.language import IGNORED, decoder_labels, smoothed_losses
from shared.nn.generation import CachedDecoder, Generated, Generation, generate
from shared.nn.heads import unit_norm
from shared.nn.image_text import ImageTextEncoders, two_layer_head
from shared.nn.text_transformer import Context, LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer


def opened(ids: Tensor, token: int) -> Tensor:
    """Ids (B, L) that begin with `token` instead: it tells the modes apart."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids


def grounded(text: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a text transformer in which every layer can look at an image."""
    return {**text, "cross_attention_from": 0}


class MixtureEncoders(ImageTextEncoders):
    """The image encoder, and a text encoder that reads a text by itself or, where it begins with
    [ENC] (`enc_id`), grounded in an image. All of it has a momentum copy."""

    reads = ("images", "videos")

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, enc_id: int):
        super().__init__(vision, grounded(text), embed_dim, masked_lm=False)
        self.enc_id = enc_id

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) -> tokens (B, 1 + N, C) and unit-norm features (B, E). Of videos
        (B, F, 3, S, S) the tokens of all frames stand in a row, and the features are averaged."""
        frames = images.flatten(0, -4)
        tokens = self.visual_encoder(frames)
        projected = self.vision_proj(tokens[:, 0]).float()
        if images.ndim == 5:
            tokens = tokens.unflatten(0, images.shape[:2]).flatten(1, 2)
            projected = projected.unflatten(0, images.shape[:2]).mean(dim=1)
        return tokens, unit_norm(projected)

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> ids (B, L) by which the text is read with an image, and unit-norm features
        (B, E) of the text by itself."""
        alone = self.text_encoder.encode(ids, mask, leading=1, alone=True)
        return opened(ids, self.enc_id), unit_norm(self.text_proj(alone[:, 0]))

    def read_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) of `encode_text` -> (B, L, D): see `ImageTextEncoders.read_text`."""
        return self.text_encoder.read(self.text_encoder.embeddings(ids), mask)


class TextDecoder(nn.Module):
    """The decoder, which begins with [DEC] (`bos_id`) and looks at a context of `context_width`."""

    def __init__(self, text: dict[str, Any], context_width: int, bos_id: int, smoothing: float):
        super().__init__()
        self.bos_id, self.smoothing = bos_id, smoothing
        self.transformer = TextTransformer(**grounded(text), context_width=context_width)
        std, width = text.get("initial_std", 0.02), self.transformer.width
        self.head = LanguageHead(text["vocab_size"], width, initial_std=std)

    def forward(
        self, ids: Tensor, mask: Tensor, context: Sequence[Context], prompt_length: int = 1
    ) -> Tensor:
        """(S,) label-smoothed losses of all tokens (B, L) after the first `prompt_length`."""
        ids = opened(ids, self.bos_id)
        labels = decoder_labels(ids, mask, prompt_length)[:, 1:]
        hidden = self.transformer(ids, mask, context, causal=True)
        predicted = labels != IGNORED
        logits = self.head(hidden[:, :-1][predicted], self.transformer.embeddings.word)
        return smoothed_losses(logits, labels[predicted], self.smoothing)

    def write(
        self,
        context: Sequence[Context],
        prompt: Sequence[int],
        settings: Generation,
        uniforms: Tensor | None = None,
    ) -> Generated:
        """Texts (B, M) about B contexts, after [DEC] and the ids of a prompt: see `generate`."""
        size, device = len(context[0][0]), self.head.bias.device
        start = torch.tensor([self.bos_id, *prompt], device=device).expand(size, -1)
        decoder = CachedDecoder(self.transformer, self.head, context, settings.max_length)
        return generate(decoder, start, settings, uniforms)


class PairNetwork(nn.Module):
    """Image encoder, and a text encoder whose cross-attention comes in twins, for two images; the
    layers from `merge_from` on merge what both see by a linear layer."""

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        classes: int,
        merge_from: int,
        enc_id: int,
    ):
        super().__init__()
        self.enc_id = enc_id
        self.visual_encoder = VisionTransformer(**vision)
        width = self.visual_encoder.embed_dim
        twins = {**grounded(text), "merge_from": merge_from}
        self.text_encoder = TextTransformer(**twins, context_width=width)
        self.classifier = two_layer_head(self.text_encoder.width, classes)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(2 B, 3, S, S), first images before second ones, and (B, L) -> logits (B, classes)."""
        context = self.text_encoder.project(self.visual_encoder(images))
        hidden = self.text_encoder.embeddings(opened(ids, self.enc_id))
        return self.classifier(self.text_encoder.fuse(hidden, mask, context, leading=1)[:, 0])
