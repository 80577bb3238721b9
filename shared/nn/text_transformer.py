"""One text transformer for all papers: BERT or RoBERTa, with optional cross-attention, causal mode.

Shapes: B texts, L tokens, D hidden size, H heads, R contexts (images) of N tokens and width C.

A layer is post-norm: self-attention, then cross-attention where the layer has it, then the
feed-forward block, each with dropout, residual and LayerNorm. Layers below `cross_attention_from`
read text only ("text" mode of the official codes), the others also a context ("fusion" mode).

The keys and values of a context are projected once, by `project`, and may serve many texts: with B
= r R, each r consecutive texts share a context, and `KeyValue.rows` picks contexts by index.

BLIP's layers all have cross-attention, and each call decides (docs/papers/blip.md, section 3.1):
`encode` with `alone` skips it, `forward` uses it, causally as a decoder or not. A decoder that
writes keeps a `Past` for each layer. `share_layers` ties a decoder to an encoder.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

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


Context = KeyValue | tuple[KeyValue, KeyValue]
"""What one layer attends to: one context, or a pair where cross-attention comes in twins."""


class Past:
    """Keys and values of the tokens that one layer has read, with room for `room` of them: those of
    the next tokens are written behind them, so that a step copies nothing. Not for gradients."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self.buffers: list[Tensor] = []

    def extend(self, new: KeyValue) -> KeyValue:
        """Take those of n more tokens, (R, H, n, D / H) each; returns views of those of all."""
        start, end = self.length, self.length + new.key.shape[2]
        if end > self.room:
            raise ValueError(f"{end} tokens do not fit a past with room for {self.room}")
        if not self.buffers:
            self.buffers = [x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in new[:2]]
        for buffer, x in zip(self.buffers, (new.key, new.value), strict=True):
            buffer[:, :, start:end] = x
        self.length = end
        key, value = (buffer[:, :, :end] for buffer in self.buffers)
        return KeyValue(key, value)

    def reorder(self, rows: Tensor) -> None:
        """Let text n continue what text `rows[n]` has read; (N,) may repeat and leave out texts."""
        for place, buffer in enumerate(self.buffers):
            read = buffer[:, :, : self.length].index_select(0, rows)
            if len(rows) != len(buffer):
                self.buffers[place] = buffer.new_empty(len(rows), *buffer.shape[1:])
            self.buffers[place][:, :, : self.length] = read


class Mixing(nn.Module):
    """Multi-head attention and a dense layer.

    `dropout` is that of the probabilities. `maps`, a list within `recorded`, takes those of each
    call before dropout, (R, H, r L, N): the r texts that share a context stand in a row.
    """

    def __init__(self, width: int, heads: int, dropout: float, context_width: int | None = None):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.output = nn.Linear(width, width)
        self.maps: list[Tensor] | None = None

    def project(self, context: Tensor, mask: Tensor | None = None) -> KeyValue:
        """(R, N, C) -> keys and values; `mask` (R, 1, 1, N) is kept with them."""
        return KeyValue(self._split(self.key(context)), self._split(self.value(context)), mask)

    def mixed(self, hidden: Tensor, context: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), what the heads find in a `context` of B / r rows, where the
        `mask`, broadcastable to (B, H, L, N), is True."""
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
        if self.maps is not None or (p > 0 and query.device.type == "cpu"):
            scores = query @ context.key.mT / math.sqrt(query.shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            probabilities = scores.softmax(dim=-1)
            if self.maps is not None:
                self.maps.append(probabilities)
            mixed = dropout(probabilities, p, self.training) @ context.value
        else:
            mixed = F.scaled_dot_product_attention(
                query, context.key, context.value, mask, dropout_p=p
            )
        return self.output(self._merge(mixed).view(batch, length, -1))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class Attention(Mixing):
    """Multi-head attention, then a dense layer, dropout, residual and LayerNorm; `dropout` is that
    of the probabilities and of the output."""

    def __init__(
        self, width: int, heads: int, dropout: float, eps: float, context_width: int | None = None
    ):
        super().__init__(width, heads, dropout, context_width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, hidden: Tensor, context: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), from a `context` of B / r rows, where the `mask`, that of the
        context unless given, is True."""
        output = self.mixed(hidden, context, context.mask if mask is None else mask)
        return self.norm(hidden + dropout(output, self.dropout, self.training))


class TwinAttention(nn.Module):
    """Attention to two contexts at once, each with weights of its own, merged before the one
    residual and LayerNorm: by a `linear` layer of both or by their mean (docs/papers/blip.md,
    section 3.12)."""

    def __init__(
        self, width: int, heads: int, dropout: float, eps: float, context_width: int, linear: bool
    ):
        super().__init__()
        self.dropout = dropout
        self.first = Mixing(width, heads, dropout, context_width)
        self.second = Mixing(width, heads, dropout, context_width)
        self.merge = nn.Linear(2 * width, width) if linear else None
        self.norm = nn.LayerNorm(width, eps)

    def project(self, context: Tensor, mask: Tensor | None = None) -> tuple[KeyValue, KeyValue]:
        """(2 R, N, C), the first contexts before the second ones -> keys and values of both."""
        masks = (None, None) if mask is None else mask.chunk(2)
        first, second = context.chunk(2)
        return self.first.project(first, masks[0]), self.second.project(second, masks[1])

    def forward(self, hidden: Tensor, context: tuple[KeyValue, KeyValue]) -> Tensor:
        """(B, L, D) -> (B, L, D), from two contexts of B / r rows each."""
        one = self.first.mixed(hidden, context[0], context[0].mask)
        other = self.second.mixed(hidden, context[1], context[1].mask)
        if self.merge is None:
            output = (one + other) / 2
        else:
            output = self.merge(torch.cat([one, other], dim=-1))
        return self.norm(hidden + dropout(output, self.dropout, self.training))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention if `context_width` is given, feed-forward; `twins` says how
    cross-attention to two contexts is merged, None if there is one."""

    def __init__(
        self,
        width: int,
        heads: int,
        intermediate: int,
        dropout: float,
        eps: float,
        context_width: int | None = None,
        twins: Literal["mean", "linear"] | None = None,
    ):
        super().__init__()
        self.dropout = dropout
        self.self_attention = Attention(width, heads, dropout, eps)
        self.cross_attention: Attention | TwinAttention | None = None
        if context_width and twins is None:
            self.cross_attention = Attention(width, heads, dropout, eps, context_width)
        elif context_width:
            sizes = width, heads, dropout, eps, context_width
            self.cross_attention = TwinAttention(*sizes, linear=twins == "linear")
        self.intermediate = nn.Linear(width, intermediate)
        self.output = nn.Linear(intermediate, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: Context | None = None,
        leading: int | None = None,
        has_read: bool = False,
        past: Past | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or so many `leading` tokens of it; with `has_read` the hidden
        states went through the layer's self-attention already; without a context cross-attention is
        skipped. Tokens also attend to those of the `past`, which they join."""
        asking = hidden[:, :leading]
        if not has_read:
            read = self.self_attention.project(hidden)
            if past is not None:
                read = past.extend(read)
            asking = self.self_attention(asking, read, mask)
        hidden = asking
        if self.cross_attention is not None and context is not None:
            hidden = self.cross_attention(hidden, context)
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

    def forward(self, ids: Tensor, types: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, L) ids and token types (None: all 0) -> (B, L, D); `first` is the position of the
        first token, that is, the number of tokens before it."""
        summed = self.word(ids) + self._positions(ids, first)
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

    def _positions(self, ids: Tensor, first: int) -> Tensor:
        """(L, D), or (B, L, D) where positions count the tokens that are no padding."""
        length = first + ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a text of {length} tokens exceeds the {self.max_length} positions of the model"
            )
        if not self.positions_after_pad:
            return self.position.weight[first:length]
        if first:
            raise ValueError("positions that count tokens need the whole text at once")
        token = ids != self.pad_id
        return self.position(token.cumsum(dim=1) * token + self.pad_id)


class TextTransformer(nn.Module):
    """BERT; the layers from `cross_attention_from` on attend to a context, too.

    Args:
        type_vocab_size: 0 for no type embeddings.
        cross_attention_from, context_width: first layer with cross-attention and C, or neither.
        share_projections: so many consecutive layers with cross-attention share its key and value
            projections (2 in ALBEF's NLVR2 network, whose twins look at one image each).
        merge_from: cross-attention comes in twins for two contexts, whose outputs the layers from
            this one on merge by a linear layer and those below average; None: it does not.
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
        merge_from: int | None = None,
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
                twins=_twins(number, merge_from),
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
        self,
        ids: Tensor,
        mask: Tensor,
        context: Sequence[Context] = (),
        causal: bool = False,
        past: Sequence[Past] = (),
    ) -> Tensor:
        """All layers ("multi_modal" mode): (B, L) -> (B, L, D). `context` as from `project`. After
        a `past`, one of each layer, the mask is that of its tokens and these, and may be (1, N)."""
        first = past[0].length if past else 0
        visible = attention_mask(mask, causal, first)
        return self.run(self.embeddings(ids, first=first), visible, context, past=past)

    def encode(
        self,
        ids: Tensor,
        mask: Tensor,
        types: Tensor | None = None,
        leading: int | None = None,
        alone: bool = False,
    ) -> Tensor:
        """Embeddings and the layers without cross-attention ("text" mode), or with `alone` all
        layers, their cross-attention skipped: (B, L, D). The last layer of all computes so many
        `leading` tokens alone, if not all are wanted."""
        if self.fusion_layer == 0 and not alone:
            raise ValueError(
                "every layer has cross-attention: encode a text by itself with alone=True, or call "
                "the model with a context"
            )
        stop = None if alone else self.fusion_layer
        return self.run(self.embeddings(ids, types), mask, stop=stop, leading=leading)

    def fuse(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: Sequence[Context],
        leading: int | None = None,
        has_read: bool = False,
    ) -> Tensor:
        """The layers with cross-attention ("fusion" mode), from hidden states (B, L, D) on, those
        that `read` gave if `has_read`; the last computes so many `leading` tokens alone."""
        if not self.fusion_layers:
            raise ValueError("no layer has cross-attention: there is nothing to fuse with")
        return self.run(hidden, mask, context, self.fusion_layer, None, leading, has_read)

    def run(
        self,
        hidden: Tensor,
        mask: Tensor,
        context: Sequence[Context] | None = None,
        start: int = 0,
        stop: int | None = None,
        leading: int | None = None,
        has_read: bool = False,
        past: Sequence[Past] = (),
    ) -> Tensor:
        """Layers `start` to `stop` (not included) from hidden states (B, L, D) on. Of `context`
        each of them with cross-attention takes one; None skips cross-attention in all of them."""
        visible, last = attention_mask(mask), self.layers[-1]
        layers = list(self.layers)[start:stop]
        fusing = sum(layer.cross_attention is not None for layer in layers)
        if context is not None and len(context) != fusing:
            raise ValueError(
                f"{fusing} layers with cross-attention take a context each, got {len(context)}: "
                "`project` makes them of an image's tokens"
            )
        contexts = iter(context or ())
        pasts: Sequence[Past | None] = list(past)[start:stop] or [None] * len(layers)
        for layer, read in zip(layers, pasts, strict=True):
            fuses = context is not None and layer.cross_attention is not None
            seen = next(contexts) if fuses else None
            wanted = leading if layer is last else None
            hidden = layer(hidden, visible, seen, wanted, has_read, read)
            has_read = False
        return hidden

    def read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Self-attention of the first layer with cross-attention, (B, L, D): it sees no context, so
        that a text that is fused with many goes through it once."""
        attention = self.fusion_layers[0].self_attention
        return attention(hidden, attention.project(hidden), attention_mask(mask))

    def project(self, tokens: Tensor, every: int = 1, mask: Tensor | None = None) -> list[Any]:
        """Keys and values of a context (R, N, C) for each layer with cross-attention, or `every`
        other one; `mask` (R, N) tells tokens of the context from its padding. Twins take contexts
        (2 R, N, C), first ones before second ones."""
        masks = () if mask is None else (attention_mask(mask),)
        return [
            layer.cross_attention.project(tokens, *masks)  # type: ignore[union-attr]
            for layer in self.fusion_layers[::every]
        ]


class LanguageHead(nn.Module):
    """BERT's word prediction: dense, GELU, LayerNorm, then the word embeddings and a bias."""

    def __init__(self, vocab_size: int, width: int, initial_std: float = 0.02):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(partial(initialise_bert, std=initial_std))

    def forward(self, hidden: Tensor, words: nn.Embedding) -> Tensor:
        """(..., D) -> logits (..., V); `words` are the word embeddings it is tied to."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words.weight, self.bias)


def attention_mask(mask: Tensor, causal: bool = False, past: int = 0) -> Tensor:
    """(B, L) -> boolean (B, 1, 1, L); causal, a token sees no later ones: (B, 1, L - past, L), as
    the first `past` tokens were read before. What is such a mask already stays as it is."""
    if mask.ndim == 4:
        return mask
    visible = mask.bool()[:, None, None, :]
    if not causal:
        return visible
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return visible & earlier[past:]


Sharing = Literal["all", "all_but_ca", "all_but_sa", "none"]


def share_layers(decoder: TextTransformer, encoder: TextTransformer, sharing: Sharing) -> None:
    """Let a decoder and an encoder of the same sizes share the encoder's parameters: "all"; all but
    cross-attention; all but self-attention, as in BLIP (docs/papers/blip.md, section 3.2); "none".
    What is shared is one module under two names, so that its gradients are summed."""
    if sharing not in (known := get_args(Sharing)):
        raise ValueError(f"sharing must be one of {known}, got {sharing!r}")
    if sharing == "none":
        return
    decoder.embeddings = encoder.embeddings
    parts = ["intermediate", "output", "norm"]
    parts += ["self_attention"] if sharing != "all_but_sa" else []
    parts += ["cross_attention"] if sharing != "all_but_ca" else []
    for mine, theirs in zip(decoder.layers, encoder.layers, strict=True):
        for part in parts:
            setattr(mine, part, getattr(theirs, part))


def _twins(number: int, merge_from: int | None) -> Literal["mean", "linear"] | None:
    """How layer `number` merges what it sees in two contexts."""
    if merge_from is None:
        return None
    return "linear" if number >= merge_from else "mean"


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
def recorded(attention: Attention) -> Iterator[list[Tensor]]:
    """Append the probabilities of each call within the block to the list that is yielded; they are
    part of the graph, see `Mixing`."""
    maps: list[Tensor] = []
    attention.maps = maps
    try:
        yield maps
    finally:
        attention.maps = None
