"""Vectors of many sequences and scores of many pairs: sorted by length, packed into even batches.

Tokens come as lists of ids without special ones. A batch holds about as many token positions as
another, padding included, so that short sequences travel in large batches; results return in the
order of the input, and do not depend on what else is in a batch but by rounding.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from methods.cascode.losses import match_scores
from methods.cascode.model import CodeEncoder, PairHead
from methods.cascode.tokenizer import CodeTokenizer, packed

Tokens = Sequence[int]
Progress = Callable[[int], None]
POSITIONS = 4096  # of a batch, padding included


def pad(rows: Collection[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 for tokens, 0 for padding), (N, L) int64; `value` fills up on the right."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, value, np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


@torch.no_grad()
def encode(
    encoder: CodeEncoder,
    tokenizer: CodeTokenizer,
    sequences: Sequence[Tokens],
    max_length: int,
    progress: Progress | None = None,
) -> Tensor:
    """(n, d) float32 on the CPU: the vectors of n queries or codes, cut to `max_length` tokens;
    `progress` is told how many were done, batch by batch."""
    device = encoder.text.embeddings.word.weight.device
    rows = [tokenizer.single(tokens, max_length) for tokens in sequences]
    vectors = torch.empty(len(rows), encoder.text.width)
    for batch in packed([len(row) for row in rows], POSITIONS):
        ids, mask = pad([rows[place] for place in batch], tokenizer.pad_id)
        vectors[batch] = encoder(ids.to(device), mask.to(device)).float().cpu()
        if progress is not None:
            progress(len(batch))
    return vectors


@torch.no_grad()
def score_pairs(
    encoder: CodeEncoder,
    head: PairHead,
    tokenizer: CodeTokenizer,
    pairs: Sequence[tuple[Tokens, Tokens]],
    max_length: int,
    max_query: int,
) -> Tensor:
    """(n,) float32 on the CPU: z_1 - z_0 of n pairs of query and code; see `encode`."""
    device = head.output.weight.device
    rows = [tokenizer.pair(query, code, max_length, max_query) for query, code in pairs]
    scores = torch.empty(len(rows))
    for batch in packed([len(ids) for ids, _ in rows], POSITIONS):
        first = encode_pairs(encoder, tokenizer, [rows[place] for place in batch], device)
        scores[batch] = match_scores(head(first)).cpu()
    return scores


def encode_pairs(
    encoder: CodeEncoder,
    tokenizer: CodeTokenizer,
    rows: Sequence[tuple[Tokens, Tokens]],
    device: torch.device,
) -> Tensor:
    """(n, d) what the first token of each pair becomes; `rows` as from `CodeTokenizer.pair`."""
    ids, mask = pad([ids for ids, _ in rows], tokenizer.pad_id)
    types = None
    if tokenizer.kind == "bert":
        types = pad([types for _, types in rows], 0)[0].to(device)
    return encoder.first(ids.to(device), mask.to(device), types)
