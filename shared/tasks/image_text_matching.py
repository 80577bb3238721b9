"""Matching of images and texts by their fusion, against negatives drawn by similarity.

Shapes: B pairs of this rank, C candidates for negatives, L tokens of width D, N patches of width W.
Source: docs/papers/albef.md, section 3.1 (items 9 to 12); salesforce/ALBEF@b9727e4
`models/model_pretrain.py:ALBEF.forward`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.distributed import all_gather, pad_to_longest
from shared.losses.image_text import draw_negatives, negative_weights
from shared.nn.text_transformer import KeyValue, TextTransformer
from shared.tasks.image_text_contrast import among_ranks
from shared.tasks.image_text_method import ImageTextBatch


def embedded(text_encoder: TextTransformer, tokens: Tensor) -> Tensor:
    """Ids (B, L) as embeddings (B, L, D); hidden states stay as they are."""
    return tokens if tokens.is_floating_point() else text_encoder.embeddings(tokens)


class ImageTextMatching(nn.Module):
    """The matching head on text states of `width` D, and how it gets its pairs: negatives are drawn
    by similarity (`hard_negatives`) or evenly, among "local" or "global" ones; for `floor` see
    `negative_weights`."""

    def __init__(self, width: int, hard_negatives: bool, negatives: str, floor: float = 0.0):
        super().__init__()
        self.hard_negatives, self.among_ranks = hard_negatives, among_ranks(negatives)
        self.floor = floor
        self.head = nn.Linear(width, 2)

    def texts(self, batch: ImageTextBatch, pad_id: int) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, L) each; L is equal on all ranks where their texts are exchanged."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.among_ranks:
            return pad_to_longest(ids, pad_id), pad_to_longest(mask, 0)
        return ids, mask

    def candidates(self, x: Tensor) -> Tensor:
        """(B, ...) of this rank -> (C, ...) of all pairs that negatives are drawn from."""
        return all_gather(x) if self.among_ranks else x

    def mine(
        self, i2t: Tensor, t2i: Tensor, positives: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A negative image for each text and a negative text for each image, (B,) candidates each,
        by logits (B, at least C), `positives` (B, C) and uniform numbers (B, 2)."""
        if not self.hard_negatives:
            i2t, t2i = torch.zeros_like(i2t), torch.zeros_like(t2i)
        i2t, t2i = (logits[:, : positives.shape[1]] for logits in (i2t, t2i))
        of_images, of_texts = (negative_weights(x, positives, self.floor) for x in (t2i, i2t))
        image_of_text = draw_negatives(of_images, positives, draws[:, 0])
        text_of_image = draw_negatives(of_texts, positives, draws[:, 1])
        return image_of_text, text_of_image

    def fuse(
        self,
        text_encoder: TextTransformer,
        image_tokens: Tensor,
        text_tokens: Tensor,
        mask: Tensor,
        negatives: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, list[KeyValue]]:
        """Fuse pairs, texts with negative images, and negative texts with images, in one pass, to
        class tokens (3 B, D); and the keys and values of the B images.

        Image tokens (B, 1 + N, W) are projected once, and text tokens (B, L, D) go once through the
        part of the fusion layers that sees no image. Gradients reach the negatives, as from `mine`.
        Instead of tokens ids (B, L) may be given, which are embedded here; among ranks the ids of
        the others are exchanged and read anew, so that no gradient of a text leaves its rank.
        """
        image_of_text, text_of_image = negatives
        read = other_read = text_encoder.read(embedded(text_encoder, text_tokens), mask)
        other_mask = mask
        own = torch.arange(len(mask), device=mask.device)
        if self.among_ranks:
            others = all_gather(image_tokens, grad=True)[image_of_text]
            image_tokens, image_of_text = torch.cat([image_tokens, others]), own + len(own)
            other_mask = all_gather(mask)
            if text_tokens.is_floating_point():
                other_read = all_gather(read, grad=True)
            else:
                others = text_encoder.embeddings(all_gather(text_tokens)[text_of_image])
                other_mask = other_mask[text_of_image]
                other_read, text_of_image = text_encoder.read(others, other_mask), own
        texts = torch.cat([read, read, other_read[text_of_image]])
        masks = torch.cat([mask, mask, other_mask[text_of_image]])
        rows = torch.cat([own, image_of_text, own])
        context = text_encoder.project(image_tokens)
        picked = [key_value.rows(rows) for key_value in context]
        matched = text_encoder.fuse(texts, masks, picked, leading=1, has_read=True)[:, 0]
        return matched, [key_value.rows(slice(len(own))) for key_value in context]

    def logits(
        self, text_encoder: TextTransformer, image_tokens: Tensor, text_tokens: Tensor, mask: Tensor
    ) -> Tensor:
        """(r R, 2) logits, column 1 "match", of r consecutive texts, tokens (r R, L, D) of the
        text-only layers or ids (r R, L) where there are none, for each of R images (R, 1 + N, W).
        """
        context = text_encoder.project(image_tokens)
        hidden = embedded(text_encoder, text_tokens)
        return self.head(text_encoder.fuse(hidden, mask, context)[:, 0])

    def quick_logits(
        self, text_encoder: TextTransformer, context: Sequence[KeyValue], read: Tensor, mask: Tensor
    ) -> Tensor:
        """As `logits`, from what `project` made of the images and `read` of the texts; quicker,
        since the last layer computes the class tokens alone."""
        fused = text_encoder.fuse(read, mask, context, leading=1, has_read=True)
        return self.head(fused[:, 0])
