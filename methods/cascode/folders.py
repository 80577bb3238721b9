"""Encoders in folders of Hugging Face's layout, as searches take them, with torch or without."""

import hashlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from methods.cascode.tokenizer import CodeTokenizer
from shared.data.errors import CheckpointError
from shared.data.readers.files import is_integer, is_number, one_line, shortened
from shared.data.readers.model_files import CONFIG
from shared.files import read_json

Pooling = Literal["mean", "cls", "pooler"]
LENGTHS = {"query": 128, "code": 256, "pair": 384}  # tokens; of models that do not bring their own
UNIXCODER = "<encoder-only>"  # a vocabulary that has it wants it in front of every text
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
}
_MOST = 1 << 31  # parameters: what asks for more is made to fill the memory


def text_config(folder: Path) -> dict[str, Any]:
    """Arguments of `TextTransformer` as a folder's config.json has them; a CheckpointError if it is
    unreadable, or of another architecture."""
    path = folder / CONFIG
    try:
        config = read_json(path)
        if (kind := config["model_type"]) not in ("bert", "roberta"):
            raise CheckpointError(f"{path}: model_type {shortened(kind)} is not bert or roberta")
        if (act := config.get("hidden_act", "gelu")) != "gelu":
            raise CheckpointError(f"{path}: hidden_act {shortened(act)} is not gelu")
        sizes = {name: config[key] for name, key in _SIZES.items()}
        shares = {"dropout": config["hidden_dropout_prob"], "eps": config["layer_norm_eps"]}
        found = {**sizes, **shares, "pad_id": config["pad_token_id"]}
        if not (
            all(is_integer(size) and size > 0 for size in sizes.values())
            and all(is_number(share) and 0 <= share < 1 for share in shares.values())
            and is_integer(found["pad_id"])
            and 0 <= found["pad_id"] < min(sizes["vocab_size"], sizes["max_positions"])
            and sizes["hidden_size"] % sizes["num_heads"] == 0
            and _parameters(sizes) <= _MOST
        ):
            raise ValueError(f"no encoder has {shortened(found)}")
        return found | {"positions_after_pad": kind == "roberta"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(repr(error))
        raise CheckpointError(f"{path}: no readable config of an encoder ({reason})") from error


def lengths_of(text: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a query, a code and a pair at most, that an encoder of such a config can place."""
    most = text["max_positions"] - (text["pad_id"] + 1) * text["positions_after_pad"]
    return {kind: min(length, most) for kind, length in LENGTHS.items()}


def tokenizer_of(folder: Path) -> CodeTokenizer:
    """The tokenizer in a folder, in UniXcoder's mode if its vocabulary has that."""
    tokenizer = CodeTokenizer(folder)
    return CodeTokenizer(folder, UNIXCODER) if tokenizer.knows(UNIXCODER) else tokenizer


def digest_of(file: BufferedReader) -> str:
    """SHA-256 of the rest of an open file of weights: 90 MB take 0.09 s, by BLAKE2b 0.11 s."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(
    weights: str,
    tokenizer: CodeTokenizer,
    text: Mapping[str, Any],
    pooling: Pooling,
    normalize: bool,
) -> str:
    """16 hex digits that tell vectors apart: of the digest of the `weights`, the tokenizer, and
    those arguments of `text_config` that change vectors, yet no weight's shape."""
    free = [text[name] for name in ("num_heads", "eps", "pad_id", "positions_after_pad")]
    lengths = sorted(lengths_of(text).items())
    facts = [weights, tokenizer.fingerprint, lengths, pooling, normalize, free]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _parameters(sizes: Mapping[str, int]) -> int:
    width = sizes["hidden_size"]
    rows = sizes["vocab_size"] + sizes["max_positions"] + sizes["type_vocab_size"]
    per_layer = 4 * width * width + 2 * width * sizes["intermediate_size"]
    return rows * width + sizes["num_layers"] * per_layer
