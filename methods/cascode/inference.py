"""A trained or packaged model as the search tool uses it: texts in, arrays out."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from methods.cascode.folders import (
    LENGTHS,
    Pooling,
    digest_of,
    fingerprint_of,
    lengths_of,
    text_config,
    tokenizer_of,
)
from methods.cascode.model import CodeEncoder, PairHead
from methods.cascode.official import load_searcher
from methods.cascode.scoring import encode, score_pairs
from methods.cascode.tokenizer import CodeTokenizer
from shared.checkpoints.reading import CheckpointError, load_checkpoint, rebuild_module
from shared.data.readers.model_files import is_folder, model_folder, weight_file
from shared.files import open_regular
from shared.training.precision import choose_fastest, has_bf16_units

Precision = Literal["auto", "float32", "bfloat16"]
PROBE = 16, 64  # sequences, tokens


class SearchModel:
    """Vectors of queries and codes, and scores of pairs if it has a `judge`, an encoder and head.

    `fingerprint` is of weights, tokeniser and lengths (in tokens, of a query, a code and a pair),
    unless another is given: equal models, equal vectors. `precision` "auto" measures which is
    faster.
    """

    def __init__(
        self,
        name: str,
        encoder: CodeEncoder,
        tokenizer: CodeTokenizer,
        lengths: Mapping[str, int] = LENGTHS,
        judge: tuple[CodeEncoder, PairHead] | None = None,
        precision: Precision = "auto",
        fingerprint: str | None = None,
    ):
        self.name, self.tokenizer, self.lengths = name, tokenizer, dict(lengths)
        self.encoder, self.judge = encoder, judge
        networks: list[nn.Module] = [encoder, *(judge or ())]
        for network in networks:
            network.eval().requires_grad_(False)
        self.fingerprint = fingerprint or _fingerprint(networks, tokenizer, self.lengths)
        self.dimension, self.can_rerank = encoder.text.width, judge is not None
        self.precision = _fastest(encoder) if precision == "auto" else precision
        for network in (encoder, *(judge or ())[:1]):  # the head stays in float32
            network.to(getattr(torch, self.precision))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) vectors; of unit length if the model's pooling normalises."""
        return self._encode(texts, "query")

    def encode_codes(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, d); `progress` is told how many were done, batch by batch."""
        return self._encode(texts, "code", progress)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(n,) z_1 - z_0 of each query and code; a CheckpointError of a model without a head."""
        if self.judge is None:
            raise CheckpointError(f"{self.name} cannot judge pairs: it has no second stage")
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each once
        tokens = dict(zip(texts, self.tokenizer.encode(texts), strict=True))
        rows = [(tokens[query], tokens[code]) for query, code in pairs]
        limits = self.lengths["pair"], self.lengths["query"]
        return score_pairs(*self.judge, self.tokenizer, rows, *limits).numpy()

    def _encode(
        self, texts: Sequence[str], kind: str, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        tokens = self.tokenizer.encode(texts)
        return encode(self.encoder, self.tokenizer, tokens, self.lengths[kind], progress).numpy()


def load_search_model(
    source: str | PathLike[str],
    precision: Precision = "auto",
    pooling: Pooling = "mean",
    normalize: bool = True,
) -> SearchModel:
    """A checkpoint of `Fast`, `Slow` or `Shared`, a folder of Hugging Face's layout, or a package.

    `pooling` and `normalize` are of a folder or package; a checkpoint knows its own. Where there is
    no model for code search: a CheckpointError; without a tokeniser a DataNotFoundError.
    """
    if is_folder(source):
        folder = model_folder(source)
        encoder = load_searcher(folder, pooling, normalize)
        text, tokenizer = text_config(folder), tokenizer_of(folder)
        with open_regular(weight_file(folder)) as file:
            fingerprint = fingerprint_of(digest_of(file), tokenizer, text, pooling, normalize)
        lengths = lengths_of(text)
        return SearchModel(
            str(source), encoder, tokenizer, lengths, None, precision, fingerprint=fingerprint
        )
    from methods.cascode.module import CodeSearch

    saved = load_checkpoint(source)
    module = rebuild_module(saved, source)
    if not isinstance(module, CodeSearch):
        raise CheckpointError(f"{source}: a checkpoint of {type(module).__name__}, not of CasCode")
    tokenizer, lengths = CodeTokenizer.from_state(saved["tokenizer"]), saved["lengths"]
    judge = (module.encoder, module.classifier) if module.judge else None
    return SearchModel(str(source), module.searcher, tokenizer, lengths, judge, precision)


def _fingerprint(
    networks: Sequence[nn.Module], tokenizer: CodeTokenizer, lengths: Mapping[str, int]
) -> str:
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {sorted(lengths.items())}".encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _fastest(encoder: CodeEncoder) -> str:
    """float32, or bfloat16 if one layer is clearly faster in it on this machine."""
    if not has_bf16_units("cpu"):
        return "float32"
    visible = torch.ones(PROBE[0], 1, 1, PROBE[1], dtype=torch.bool)

    def step(dtype: torch.dtype) -> Callable[[], object]:
        layer = copy.deepcopy(encoder.text.layers[0]).to(dtype)
        hidden = torch.randn(*PROBE, encoder.text.width, dtype=dtype)
        return lambda: layer(hidden, visible)

    with torch.no_grad(), torch.random.fork_rng():
        steps = {"float32": step(torch.float32), "bfloat16": step(torch.bfloat16)}
        # Long enough to outlast what else the machine does for a moment.
        return choose_fastest(steps, seconds=1.0, least=9).precision
