"""The two unimodal encoders of image-text models, and what joins them.

Shapes: B pairs, N patches, C vision width, L tokens, D text width, E joint dimension.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from shared.nn.heads import unit_norm
from shared.nn.text_transformer import LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer


class ImageTextEncoders(nn.Module):
    """All that has a momentum copy: both encoders, their projections, and the word prediction.

    `vision` and `text` are arguments of `VisionTransformer` and of `TextTransformer`, whose upper
    layers fuse a text with an image; with `masked_lm` there is a `word_head`. `reads`: what
    `encode_image` takes.
    """

    reads: ClassVar[tuple[str, ...]] = ("images",)

    def __init__(
        self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, masked_lm: bool
    ):
        super().__init__()
        self.visual_encoder, self.text_encoder = self.build_encoders(vision, text)
        width = self.visual_encoder.embed_dim
        self.vision_proj = nn.Linear(width, embed_dim)
        self.text_proj = nn.Linear(self.text_encoder.width, embed_dim)
        self.word_head: LanguageHead | None = None
        if masked_lm:
            std, width = text.get("initial_std", 0.02), self.text_encoder.width
            self.word_head = LanguageHead(text["vocab_size"], width, initial_std=std)

    def build_encoders(
        self, vision: dict[str, Any], text: dict[str, Any]
    ) -> tuple[VisionTransformer, TextTransformer]:
        """The encoders of both, the texts' fitting the images' width."""
        visual_encoder = VisionTransformer(**vision)
        return visual_encoder, TextTransformer(**text, context_width=visual_encoder.embed_dim)

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> tokens (B, 1 + N, C) and unit-norm features (B, E)."""
        tokens = self.visual_encoder(images)
        return tokens, unit_norm(self.vision_proj(tokens[:, 0]))

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> tokens (B, L, D) of the text-only layers and unit-norm features (B, E)."""
        tokens = self.text_encoder.encode(ids, mask)
        return tokens, unit_norm(self.text_proj(tokens[:, 0]))

    def read_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) of `encode_text` -> (B, L, D), as far as a text that is matched with many
        images is read once: see `TextTransformer.read`."""
        return self.text_encoder.read(tokens, mask)

    def predict_words(self, hidden: Tensor) -> Tensor:
        """(S, D) -> logits (S, V)."""
        assert self.word_head is not None
        return self.word_head(hidden, self.text_encoder.embeddings.word)


def two_layer_head(width: int, classes: int, hidden: int | None = None) -> nn.Sequential:
    """Linear, ReLU, Linear: (B, width) -> logits (B, classes); `hidden` is `width` unless given."""
    hidden = width if hidden is None else hidden
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))
