"""ALPRO's networks: a TimeSformer, and a BERT that reads a text, then the text before a video.

Shapes: B texts, L tokens, D width of text and video, R videos of N patches, E joint dimension.
Source: docs/papers/alpro.md, sections 3.2, 3.3 and 4.2; salesforce/ALPRO@4ff6163
`src/modeling/xbert.py:BertModel.forward`, `src/modeling/alpro_models.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.losses.contrastive import InBatchContrast, similarity_logits
from shared.nn.image_text import ImageTextEncoders
from shared.nn.text_transformer import TextTransformer
from shared.nn.timesformer import TimeSformer
from shared.tasks.image_text_matching import ImageTextMatching

TEMPERATURES = (0.001, 0.5)


class Tokens(NamedTuple):
    """Tokens (R, 1 + N, D) of videos, behind which no layer keeps keys and values: those of a
    layer depend on the text."""

    tokens: Tensor

    def rows(self, index: Tensor | slice) -> "Tokens":
        """Those of the videos in `index`, with repetition."""
        if isinstance(index, slice):
            return Tokens(self.tokens[index])
        return Tokens(self.tokens.index_select(0, index))


class JointTransformer(TextTransformer):
    """BERT without cross-attention: the layers from `fusion_layer` on attend to the tokens of a
    text and of a video, as to one long text, without further embeddings."""

    def __init__(self, fusion_layer: int, context_width: int, **text: Any):
        super().__init__(**text)
        if context_width != self.width:
            sizes = f"method.vision.width={context_width}, method.text.hidden_size={self.width}"
            raise ValueError(f"{sizes}: they must be equal, for a text and a video stand in a row")
        self.fusion_layer = fusion_layer

    def project(self, tokens: Tensor, every: int = 1, mask: Tensor | None = None) -> list[Any]:
        """Wrap video tokens (R, 1 + N, D) as the context that `fuse` takes."""
        return [Tokens(tokens)]

    def read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return (B, L, D) unchanged: no layer that sees the video reads the text by itself."""
        return hidden

    def fuse(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: Sequence[Any],
        leading: int | None = None,
        has_read: bool = False,
    ) -> Tensor:
        """Hidden states (B, L, D) and a context of B / r videos, each for r consecutive texts ->
        (B, L + 1 + N, D), or so many `leading` tokens of it."""
        (video,) = context
        tokens = video.tokens
        if len(tokens) != len(hidden):
            tokens = tokens.repeat_interleave(len(hidden) // len(tokens), dim=0)
        seen = torch.cat([mask.bool(), mask.new_ones(tokens.shape[:2]).bool()], dim=1)
        both = torch.cat([hidden, tokens.to(hidden.dtype)], dim=1)
        return self.run(both, seen, start=self.fusion_layer, leading=leading)


class VideoTextEncoders(ImageTextEncoders):
    """Encoders of videos (B, T, 3, S, S) and texts; `vision` are arguments of `TimeSformer`, `text`
    those of `JointTransformer`."""

    reads = ("videos",)

    def build_encoders(
        self, vision: dict[str, Any], text: dict[str, Any]
    ) -> tuple[TimeSformer, JointTransformer]:
        visual_encoder = TimeSformer(**vision)
        return visual_encoder, JointTransformer(**text, context_width=visual_encoder.embed_dim)


class VideoTextContrast(nn.Module):
    """The contrastive loss of videos and texts (VTC) and its learned temperature. Negatives are the
    pairs of all ranks, and the gradient reaches them."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        self.loss = InBatchContrast(symmetric=True, gather=True)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        """The mean of both directions for unit-norm features (B, E), after tau is clamped."""
        with torch.no_grad():
            self.temp.clamp_(*TEMPERATURES)
        return self.loss(video, text, self.temp)

    @torch.no_grad()
    def negatives(
        self, matching: ImageTextMatching, video: Tensor, text: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A negative video for each text and a negative text for each video, (B,) of this rank's
        pairs each, by uniform numbers (B, 2). The own pair is left out before the softmax, so that
        no probability is lost to it."""
        own = torch.eye(len(video), dtype=torch.bool, device=video.device)
        logits = similarity_logits(video, text, self.temp)
        v2t, t2v = (x.masked_fill(own, -torch.inf) for x in (logits, logits.T))
        return matching.mine(v2t, t2v, own, draws)
