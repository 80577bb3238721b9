"""CasCode's networks: an encoder of queries and codes, and the head that judges a pair.

Shapes: B sequences, L tokens, d hidden size.
Source: docs/papers/cascode.md, sections 3.1, 3.2 and 4; microsoft/CodeBERT@c0de43d.
"""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cascode.folders import Pooling
from shared.nn.text_transformer import TextTransformer, initialise_bert


class CodeEncoder(nn.Module):
    """One transformer for both sides; a sequence becomes one vector.

    Args:
        pooling: "mean" over all tokens, special ones included (UniXcoder); "cls", the first token;
            "pooler", RoBERTa's tanh layer on the first token (GraphCodeBERT).
        normalize: to unit length, so that inner products are cosines.
    """

    def __init__(self, text: Mapping[str, Any], pooling: Pooling = "mean", normalize: bool = True):
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        self.pooling, self.normalize = pooling, normalize
        self.text = TextTransformer(**text)
        self.pooler = nn.Linear(self.text.width, self.text.width) if pooling == "pooler" else None
        if self.pooler is not None:
            initialise_bert(self.pooler, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) ids and mask -> (B, d) float32 vectors."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).float()
            hidden = self.text.encode(ids, mask).float()
            vectors = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        else:
            vectors = self.first(ids, mask)
            if self.pooler is not None:
                vectors = torch.tanh(self.pooler(vectors))
            vectors = vectors.float()
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def first(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """(B, d) the last hidden state of the first token; the last layer computes no other."""
        return self.text.encode(ids, mask, types, leading=1)[:, 0]

    def freeze(self, layers: int) -> None:
        """Train neither the embeddings nor the first `layers` layers; 0 freezes nothing."""
        count = len(self.text.layers)
        if not 0 <= layers < count:
            raise ValueError(f"frozen_layers={layers}: choose 0 to {count - 1} of {count} layers")
        if layers:
            self.text.embeddings.requires_grad_(False)
            self.text.layers[:layers].requires_grad_(False)


class PairHead(nn.Module):
    """RoBERTa's classification head: what the first token of a pair says, label 1 is a match.

    It computes in float32, whatever the encoder does: of the confident scores of good candidates
    many are equal in bfloat16, and ties count against the model.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.dense, self.output = nn.Linear(width, width), nn.Linear(width, 2)
        for layer in (self.dense, self.output):
            initialise_bert(layer, std=0.02)

    def forward(self, first: Tensor) -> Tensor:
        """(B, d) -> (B, 2) logits, float32."""
        with torch.autocast(first.device.type, enabled=False):
            hidden = F.dropout(first.float(), self.dropout, self.training)
            hidden = F.dropout(torch.tanh(self.dense(hidden)), self.dropout, self.training)
            return self.output(hidden)
