"""One text transformer for all papers: BERT or RoBERTa, with optional cross-attention, causal mode.

Shapes: B texts, L tokens, D hidden size, H heads, R contexts (images) of N tokens and width C.

A layer is post-norm: self-attention, then cross-attention where the layer has it, then the
feed-forward block, each with dropout, residual and LayerNorm. Layers below `cross_attention_from`
read text only ("text" mode of the official codes), the others also a context ("fusion" mode).

The keys and values of a context are projected once, by `project`, and may serve many texts: with B
= r R, each r consecutive texts share a context, and `KeyValue.rows` picks contexts by index.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.nn.dropout import dropout


class KeyValue(NamedTuple):
    """Keys and values that one layer attends to, each (R, H, N, D / H); the boolean `mask`
    (R, 1, 1, N) is False at padding of a context, None without any."""

    key: Tensor
    value: Tensor
    mask: Tensor | None = None

    def rows(self, index: Tensor | slice) -> "KeyValue":
        """Those of the contexts in `index`, with repetition; a slice copies nothing."""
        mask = None if self.mask is None else self.mask[index]
        if isinstance(index, slice):
            return KeyValue(self.key[index], self.value[index], mask)
        # The gradient of `key[index]` would take several times as long on a CPU.
        return KeyValue(self.key.index_select(0, index), self.value.index_select(0, index), mask)


class Attention(nn.Module):
    """Multi-head attention, then a dense layer, dropout, residual and LayerNorm.

    `dropout` is that of the probabilities and of the output. `map`, (B, H, L, N), holds the
    probabilities (before dropout) of the last call inside `recorded`, as part of the graph.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, eps: float, context_width: int | None = None
    ):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.recording = False
        self.map: Tensor | None = None

    def project(self, context: Tensor) -> KeyValue:
        """(R, N, C) -> keys and values."""
        return KeyValue(self._split(self.key(context)), self._split(self.value(context)))

    def forward(self, hidden: Tensor, context: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), from a `context` of B / r rows, where the `mask`, broadcastable
        to (B, H, L, N), is True."""
        batch, length = hidden.shape[:2]
        query = self._split(self.query(hidden))
        contexts = len(context.key)
        if contexts != batch:
            if batch % contexts:
                raise ValueError(f"{batch} texts can't share {contexts} contexts evenly")
            # The queries of texts that share a context stand in a row, as those of one long text.
            query = self._split(self._merge(query).view(contexts, -1, hidden.shape[-1]))
        p = self.dropout if self.training else 0.0
        # On a CPU fused attention knows no dropout: torch would take separate steps, too.
        if self.recording or (p > 0 and query.device.type == "cpu"):
            scores = query @ context.key.mT / math.sqrt(query.shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            probabilities = scores.softmax(dim=-1)
            if self.recording:
                probabilities = self._record(probabilities, texts=batch // contexts)
            mixed = dropout(probabilities, p, self.training) @ context.value
        else:
            mixed = F.scaled_dot_product_attention(
                query, context.key, context.value, mask, dropout_p=p
            )
        output = self.output(self._merge(mixed).view(batch, length, -1))
        return self.norm(hidden + dropout(output, self.dropout, self.training))

    def _record(self, probabilities: Tensor, texts: int) -> Tensor:
        """Keep the `map`, of which the result is computed; `texts` in a row share a context."""
        self.map = probabilities.unflatten(2, (texts, -1)).transpose(1, 2).flatten(0, 1)
        return self.map.unflatten(0, (-1, texts)).transpose(1, 2).flatten(2, 3)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention if `context_width` is given, feed-forward."""

    def __init__(
        self,
        width: int,
        heads: int,
        intermediate: int,
        dropout: float,
        eps: float,
        context_width: int | None = None,
    ):
        super().__init__()
        self.dropout = dropout
        self.self_attention = Attention(width, heads, dropout, eps)
        self.cross_attention: Attention | None = None
        if context_width:
            self.cross_attention = Attention(width, heads, dropout, eps, context_width)
        self.intermediate = nn.Linear(width, intermediate)
        self.output = nn.Linear(intermediate, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: KeyValue | None = None,
        first_only: bool = False,
        has_read: bool = False,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), of the first token alone if `first_only`; with `has_read` the
        hidden states went through the layer's self-attention already."""
        asking = hidden[:, :1] if first_only else hidden
        if not has_read:
            asking = self.self_attention(asking, self.self_attention.project(hidden), mask)
        hidden = asking
        if self.cross_attention is not None:
            if context is None:
                raise ValueError("a layer with cross-attention needs a context")
            hidden = self.cross_attention(hidden, context, context.mask)
        output = self.output(F.gelu(self.intermediate(hidden)))
        return self.norm(hidden + dropout(output, self.dropout, self.training))


class Embeddings(nn.Module):
    """Word, position and type embeddings, summed, then LayerNorm and dropout."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        max_positions: int,
        type_vocab_size: int,
        dropout: float,
        eps: float,
        pad_id: int,
        positions_after_pad: bool,
    ):
        super().__init__()
        self.dropout, self.pad_id, self.positions_after_pad = dropout, pad_id, positions_after_pad
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        padding_position = pad_id if positions_after_pad else None
        self.position = nn.Embedding(max_positions, width, padding_idx=padding_position)
        # BLIP's texts have no types at all.
        self.token_type = nn.Embedding(type_vocab_size, width) if type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        """(B, L) ids and token types (None: all 0) -> (B, L, D)."""
        summed = self.word(ids) + self._positions(ids)
        if self.token_type is not None:
            of_types = self.token_type.weight[0] if types is None else self.token_type(types)
            summed = summed + of_types
        elif types is not None:
            raise ValueError("token types given, but the model has no type embeddings")
        return dropout(self.norm(summed), self.dropout, self.training)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return self.position.num_embeddings - (self.pad_id + 1) * self.positions_after_pad

    def _positions(self, ids: Tensor) -> Tensor:
        """(L, D), or (B, L, D) where positions count the tokens that are no padding."""
        length = ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a text of {length} tokens exceeds the {self.max_length} positions of the model"
            )
        if not self.positions_after_pad:
            return self.position.weight[:length]
        token = ids != self.pad_id
        return self.position(token.cumsum(dim=1) * token + self.pad_id)


class TextTransformer(nn.Module):
    """BERT; the layers from `cross_attention_from` on attend to a context, too.

    Args:
        type_vocab_size: 0 for no type embeddings.
        cross_attention_from, context_width: first layer with cross-attention and C, or neither.
        share_projections: so many consecutive layers with cross-attention share its key and value
            projections (2 in ALBEF's NLVR2 network, whose twins look at one image each).
        positions_after_pad: positions as in RoBERTa: padding has position `pad_id`, tokens those
            after it, counted over tokens only; so `max_positions` leaves room for pad_id + 1 fewer.
        initial_std: of weights; 0.02 is right for BERT's width, about 1 / sqrt(3 D) for small ones.

    Masks (B, L) are 1 (or True) for tokens, 0 for padding, or what `attention_mask` made of one.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int = 3072,
        max_positions: int = 512,
        type_vocab_size: int = 2,
        dropout: float = 0.1,
        eps: float = 1e-12,
        cross_attention_from: int | None = None,
        context_width: int | None = None,
        share_projections: int = 1,
        pad_id: int = 0,
        positions_after_pad: bool = False,
        initial_std: float = 0.02,
    ):
        super().__init__()
        if (cross_attention_from is None) != (context_width is None):
            raise ValueError("cross_attention_from and context_width are given together or not")
        self.width, self.pad_id = hidden_size, pad_id
        self.fusion_layer = num_layers if cross_attention_from is None else cross_attention_from
        self.embeddings = Embeddings(
            *(vocab_size, hidden_size, max_positions, type_vocab_size, dropout, eps),
            *(pad_id, positions_after_pad),
        )
        self.layers = nn.ModuleList(
            TransformerLayer(
                *(hidden_size, num_heads, intermediate_size, dropout, eps),
                context_width=context_width if number >= self.fusion_layer else None,
            )
            for number in range(num_layers)
        )
        self.apply(partial(initialise_bert, std=initial_std))
        for start in range(0, len(self.fusion_layers), share_projections):
            first, *others = self.fusion_layers[start : start + share_projections]
            for other in others:
                other.cross_attention.key = first.cross_attention.key  # type: ignore[union-attr]
                other.cross_attention.value = first.cross_attention.value  # type: ignore[union-attr]

    @property
    def fusion_layers(self) -> list[TransformerLayer]:
        """The layers with cross-attention."""
        return list(self.layers[self.fusion_layer :])  # type: ignore[arg-type]

    def forward(
        self, ids: Tensor, mask: Tensor, context: Sequence[KeyValue] = (), causal: bool = False
    ) -> Tensor:
        """All layers ("multi_modal" mode): (B, L) -> (B, L, D). `context` as from `project`."""
        visible = attention_mask(mask, causal)
        return self.fuse(self.encode(ids, visible), visible, context)

    def encode(
        self, ids: Tensor, mask: Tensor, types: Tensor | None = None, first_only: bool = False
    ) -> Tensor:
        """Embeddings and the layers without cross-attention ("text" mode): (B, L, D); `first_only`
        lets the last layer of a model without cross-attention compute the first token alone."""
        hidden, visible = self.embeddings(ids, types), attention_mask(mask)
        last = self.layers[-1]
        for layer in self.layers[: self.fusion_layer]:
            hidden = layer(hidden, visible, first_only=first_only and layer is last)
        return hidden

    def fuse(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: Sequence[KeyValue],
        first_only: bool = False,
        has_read: bool = False,
    ) -> Tensor:
        """The layers with cross-attention ("fusion" mode), from hidden states (B, L, D) on, those
        that `read` gave if `has_read`; `first_only` lets the last compute the first token alone."""
        visible, last = attention_mask(mask), self.layers[-1]
        for layer, key_value in zip(self.fusion_layers, context, strict=True):
            hidden = layer(hidden, visible, key_value, first_only and layer is last, has_read)
            has_read = False
        return hidden

    def read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Self-attention of the first layer with cross-attention, (B, L, D): it sees no context, so
        that a text that is fused with many goes through it once."""
        attention = self.fusion_layers[0].self_attention
        return attention(hidden, attention.project(hidden), attention_mask(mask))

    def project(self, tokens: Tensor, every: int = 1, mask: Tensor | None = None) -> list[KeyValue]:
        """Keys and values of a context (R, N, C) for each layer with cross-attention, or `every`
        other one; `mask` (R, N) tells tokens of the context from its padding."""
        visible = None if mask is None else attention_mask(mask)
        return [
            layer.cross_attention.project(tokens)._replace(mask=visible)  # type: ignore[union-attr]
            for layer in self.fusion_layers[::every]
        ]


class LanguageHead(nn.Module):
    """BERT's word prediction: dense, GELU, LayerNorm, then the word embeddings and a bias."""

    def __init__(self, vocab_size: int, width: int, eps: float = 1e-12, initial_std: float = 0.02):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(partial(initialise_bert, std=initial_std))

    def forward(self, hidden: Tensor, words: nn.Embedding) -> Tensor:
        """(..., D) -> logits (..., V); `words` are the word embeddings it is tied to."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words.weight, self.bias)


def attention_mask(mask: Tensor, causal: bool = False) -> Tensor:
    """(B, L) -> boolean (B, 1, 1, L); causal, a token sees no later ones: (B, 1, L, L). What is
    such a mask already stays as it is."""
    if mask.ndim == 4:
        return mask
    visible = mask.bool()[:, None, None, :]
    if not causal:
        return visible
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return visible & earlier


def initialise_bert(module: nn.Module, std: float) -> None:
    """N(0, std) for weights, 0 for biases and padding; LayerNorms keep 1 and 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


@contextmanager
def recorded(attention: Attention) -> Iterator[Attention]:
    """Keep the probabilities of each call in `attention.map` within the block."""
    attention.recording = True
    try:
        yield attention
    finally:
        attention.recording, attention.map = False, None
