"""An encoder of Hugging Face's layout in numpy: vectors as `inference.SearchModel` has them.

A query then waits for no torch, whose import takes longer than all else. Sequences of a batch stand
in a row, without padding, and those of equal length attend together.
Shapes: N tokens of all sequences, D hidden size.
"""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from methods.cascode.folders import (
    Pooling,
    digest_of,
    fingerprint_of,
    lengths_of,
    text_config,
    tokenizer_of,
)
from methods.cascode.tokenizer import packed
from shared.data.errors import CheckpointError
from shared.data.readers.files import is_integer, one_line, shortened
from shared.data.readers.model_files import CONFIG, WEIGHTS, model_folder, weight_file
from shared.files import open_regular, parse_json

Floats = NDArray[np.float32]
Dense = tuple[Floats, Floats]  # weight (outputs, inputs) and bias; of a LayerNorm both (D,)
POSITIONS = 512  # of a batch: what a layer makes of them stays in a core's cache
MOST_THREADS = 16
LONGEST_HEADER = 1 << 24  # bytes; that of 24 layers has 50,000
FORMATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
WORDS = "embeddings.word_embeddings.weight"
UNUSED = ("lm_head.", "cls.", "classifier.")  # heads of other tasks
# ln(1 - Phi(a)), the highest power first: least squares on 0 to 6, reweighted until 1 - Phi errs by
# 8e-9 at most, where rounding adds 8e-8. Beyond 6 it falls on.
TAIL = (
    *(-1.92144330e-6, 2.67699215e-5, -1.26532628e-4, -1.01108817e-4, 4.90434235e-3),
    *(-3.63937132e-2, -3.18296582e-1, -7.97885716e-1, -6.93147182e-1),
)
FARTHEST, AT_ONCE = 10, 1 << 14


class PickledError(CheckpointError):
    """Weights that torch alone reads."""


class Layer(NamedTuple):
    """Weights of a layer; `read` makes queries, scaled already, keys and values: (3 D, D)."""

    read: Dense
    mixed: Dense
    mixed_norm: Dense
    inner: Dense
    output: Dense
    norm: Dense


class TextEncoder:
    """BERT or RoBERTa of a folder in Hugging Face's layout, "package:NAME" or "hub:NAME".

    `fingerprint` is that of `load_search_model`. Weights in float32 are mapped, not copied: rows of
    words that no text has take no memory.

    Raises:
        CheckpointError: no such folder, or not the weights of an encoder as its config.json has it;
            a PickledError if there are only pickled ones.
        DataNotFoundError, DataCorruptError: of the tokenizer.
    """

    precision, can_rerank = "float32", False

    def __init__(
        self, source: str | os.PathLike[str], pooling: Pooling = "mean", normalize: bool = True
    ) -> None:
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        folder = model_folder(source)
        self.name, self.pooling, self.normalize = str(source), pooling, normalize
        self._path = path = weight_file(folder)
        if path.name != WEIGHTS[0]:
            raise PickledError(f"{path}: pickled weights are read by torch alone")
        self._config = text_config(folder)
        self.dimension: int = self._config["hidden_size"]
        try:
            file = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        with file, ThreadPoolExecutor(1) as beside:
            weights = _Weights(file, path)
            digest = beside.submit(digest_of, file)  # it takes as long as all else
            self._take(weights)
            self.tokenizer = tokenizer_of(folder)
        facts = self.tokenizer, self._config, pooling, normalize
        self.fingerprint = fingerprint_of(digest.result(), *facts)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """(n, D) vectors; CheckpointError of weights that are not finite."""
        return self._encode(texts, "query")

    def encode_codes(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Floats:
        """(n, D); `progress` is told how many were done, batch by batch. See `encode_queries`."""
        return self._encode(texts, "code", progress)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Raise a CheckpointError: a folder has no second stage."""
        raise CheckpointError(f"{self.name} cannot judge pairs: it has no second stage")

    def _take(self, weights: "_Weights") -> None:
        config, width, take = self._config, self.dimension, weights.take
        inner = config["intermediate_size"]

        def dense(name: str, outputs: int = width, inputs: int = width) -> Dense:
            return take(f"{name}.weight", outputs, inputs), take(f"{name}.bias", outputs)

        def norm(name: str) -> Dense:
            return take(f"{name}.weight", width), take(f"{name}.bias", width)

        def layer(number: int) -> Layer:
            at = f"encoder.layer.{number}"
            parts = [dense(f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
            weight, bias = (np.concatenate(of_three) for of_three in zip(*parts, strict=True))
            for queries in (weight[:width], bias[:width]):
                queries /= math.sqrt(width // config["num_heads"])
            return Layer(
                (weight, bias),
                dense(f"{at}.attention.output.dense"),
                norm(f"{at}.attention.output.LayerNorm"),
                dense(f"{at}.intermediate.dense", inner),
                dense(f"{at}.output.dense", width, inner),
                norm(f"{at}.output.LayerNorm"),
            )

        self._words = take(WORDS, config["vocab_size"], width)
        places = take("embeddings.position_embeddings.weight", config["max_positions"], width)
        types = take("embeddings.token_type_embeddings.weight", config["type_vocab_size"], width)
        self._places, self._norm = places + types[0], norm("embeddings.LayerNorm")
        self._layers = [layer(number) for number in range(config["num_layers"])]
        self._pooler = dense("pooler.dense") if self.pooling == "pooler" else None
        weights.finish()

    def _encode(
        self, texts: Sequence[str], kind: str, progress: Callable[[int], None] | None = None
    ) -> Floats:
        most = lengths_of(self._config)[kind]
        rows = [self.tokenizer.single(ids, most) for ids in self.tokenizer.encode(texts)]
        batches = list(packed([len(row) for row in rows], POSITIONS))
        work = [[rows[place] for place in batch] for batch in batches]
        vectors = np.empty((len(rows), self.dimension), np.float32)
        with ExitStack() as stack:
            run: Any = map
            if len(work) > 1:  # threads of our own share GELU and LayerNorm out, too
                stack.enter_context(threadpool_limits(1, user_api="blas"))
                threads = min(len(work), os.cpu_count() or 1, MOST_THREADS)
                run = stack.enter_context(ThreadPoolExecutor(threads)).map
            for batch, found in zip(batches, run(self._forward, work), strict=True):
                vectors[batch] = found
                if progress is not None:
                    progress(len(batch))
        if not np.isfinite(vectors).all():
            raise CheckpointError(f"{self._path}: no finite vectors come from its weights")
        return vectors

    @np.errstate(all="ignore")  # what overflows is found in the vectors
    def _forward(self, rows: Sequence[Sequence[int]]) -> Floats:
        """(n, D) vectors of n sequences, the shortest first."""
        sizes = np.array([len(row) for row in rows])
        hidden = self._normalised(self._embedded(rows), self._norm)
        for layer in self._layers:
            mixed = _dense(self._mixed(_dense(hidden, layer.read), sizes), layer.mixed)
            hidden = self._normalised(mixed + hidden, layer.mixed_norm)
            output = _dense(gelu(_dense(hidden, layer.inner)), layer.output)
            hidden = self._normalised(output + hidden, layer.norm)
        starts = np.cumsum(sizes) - sizes
        vectors: Floats
        if self.pooling == "mean":
            vectors = np.add.reduceat(hidden, starts)
            vectors /= sizes[:, None]
        else:
            vectors = hidden[starts]
            if self._pooler is not None:
                vectors = np.tanh(_dense(vectors, self._pooler))
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _embedded(self, rows: Sequence[Sequence[int]]) -> Floats:
        """(N, D) embeddings of words and places, summed."""
        ids = [np.array(row) for row in rows]
        places = [np.arange(len(row)) for row in rows]
        if self._config["positions_after_pad"]:
            pad = self._config["pad_id"]
            tokens = [row != pad for row in ids]
            places = [np.cumsum(token) * token + pad for token in tokens]
        if (largest := max(row.max() for row in ids)) >= len(self._words):
            raise CheckpointError(f"{self._path}: no word {largest}, which its tokenizer has")
        return self._words[np.concatenate(ids)] + self._places[np.concatenate(places)]

    def _mixed(self, read: Floats, sizes: NDArray[np.int64]) -> Floats:
        """(N, D) what the heads find, of queries, keys and values (N, 3 D)."""
        heads, start = self._config["num_heads"], 0
        mixed = np.empty((len(read), self.dimension), np.float32)
        for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
            end = start + size * count
            parts = read[start:end].reshape(count, size, 3, heads, -1).transpose(2, 0, 3, 1, 4)
            query, key, value = parts  # (count, heads, size, D / heads) each
            shares = query @ key.mT
            shares -= shares.max(axis=-1, keepdims=True)
            np.exp(shares, out=shares)
            found = shares @ value / shares.sum(axis=-1, keepdims=True)
            mixed[start:end] = found.transpose(0, 2, 1, 3).reshape(size * count, -1)
            start = end
        return mixed

    def _normalised(self, hidden: Floats, norm: Dense) -> Floats:
        """LayerNorm of (N, D), in place."""
        hidden -= hidden.mean(axis=1, keepdims=True)
        squares = np.einsum("nd,nd->n", hidden, hidden)
        hidden /= np.sqrt(squares / self.dimension + self._config["eps"])[:, None]
        hidden *= norm[0]
        hidden += norm[1]
        return hidden


def gelu(values: Floats) -> Floats:
    """x Phi(x) of a contiguous array, in place: max(x, 0) - |x| (1 - Phi(|x|)), within 1e-7."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), AT_ONCE):  # which stay in the cache
        part = flat[start : start + AT_ONCE]
        size = np.minimum(np.abs(part), FARTHEST)
        tail = size * np.float32(TAIL[0])
        for coefficient in TAIL[1:-1]:
            tail += np.float32(coefficient)
            tail *= size
        tail += np.float32(TAIL[-1])
        size *= np.exp(tail, out=tail)
        np.maximum(part, 0, out=part)
        part -= size
    return values


def _dense(inputs: Floats, weights: Dense) -> Floats:
    """(N, I) -> (N, O)."""
    outputs = inputs @ weights[0].T
    outputs += weights[1]
    return outputs


class _Weights:
    """The tensors of a .safetensors file, which are taken one by one, and then no other is left."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._path = path
        try:
            whole = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(whole - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in {whole}")
            header = parse_json(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
            self._content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            file.seek(0)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: truncated, damaged or no weights ({error})") from None
        self._content = self._content[8 + length :]
        header.pop("__metadata__", None)
        for oldest, today in (("gamma", "weight"), ("beta", "bias")):
            before, after = f"LayerNorm.{oldest}", f"LayerNorm.{today}"
            header = {key.replace(before, after): about for key, about in header.items()}
        self._left: dict[str, Any] = header
        self._prefix = next(
            (p for p in ("encoder.", "roberta.", "bert.") if p + WORDS in header), ""
        )

    def take(self, name: str, *shape: int) -> Floats:
        """The tensor of that name and shape; rows of words are checked where they are used."""
        key = self._prefix + name
        if (about := self._left.pop(key, None)) is None:
            raise CheckpointError(f"{self._path}: {key} is missing")
        try:
            found, (start, end) = about["shape"], about["data_offsets"]
            form = np.dtype(FORMATS[about["dtype"]])
            if found != [*shape]:
                raise ValueError(f"it has {shortened(found)}, by {CONFIG} it is {[*shape]}")
            fits = is_integer(start) and is_integer(end) and 0 <= start <= end <= len(self._content)
            if not (fits and end - start == math.prod(shape) * form.itemsize):
                raise ValueError(f"bytes {shortened([start, end])} of {len(self._content)}")
            values: NDArray = np.frombuffer(self._content[start:end], form).reshape(shape)
            if about["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            with np.errstate(over="ignore"):
                taken: Floats = np.require(values, np.float32, "A")
            if name != WORDS and not np.isfinite(taken).all():
                raise ValueError("values that are not finite")
        except (KeyError, TypeError, ValueError) as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            raise CheckpointError(f"{self._path}: {key} is unusable ({reason})") from None
        return taken

    def finish(self) -> None:
        """CheckpointError if weights are left that no encoder has."""
        names = "pooler.", "embeddings.position_ids", "embeddings.token_type_ids"
        unused = *UNUSED, *(self._prefix + name for name in names)
        if left := [key for key in self._left if not key.startswith(unused)]:
            raise CheckpointError(f"{self._path}: unexpected {shortened(left)}")
