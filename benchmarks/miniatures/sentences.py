"""Texts as vectors by all-MiniLM-L6-v2, whose folder `code.sources.minilm` makes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.cascode.official import load_searcher
from shared.data.text.wordpiece import WordPiece

SEP = 102  # MiniLM expects it behind every text
BATCH = 128


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str], folder: Path) -> Tensor:
    """(N, 384) of unit norm."""
    encoder = load_searcher(folder).eval()
    tokenizer = WordPiece(folder / "vocab.txt")
    vectors = []
    for start in range(0, len(texts), BATCH):
        ids, mask = (F.pad(x, (0, 1)) for x in tokenizer.batch(texts[start : start + BATCH]))
        ends = mask.sum(dim=1, keepdim=True)
        vectors.append(encoder(ids.scatter(1, ends, SEP), mask.scatter(1, ends, 1)))
    return torch.cat(vectors)
