"""Adapter of the layout and truncation of pairs and of single sequences."""

import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from methods.cascode.tokenizer import CodeTokenizer, pad

UNIXCODER = "<encoder-only>"


def pair_encoding(config: Any, inputs: Any, weights: Any) -> dict[str, Any]:
    """Padded as the case is: pairs with the official script's id, which the mask hides anyway."""
    tokenizer = _whitespace_tokenizer(inputs["vocab"])
    texts = {
        side: tokenizer.encode([" ".join(item[f"{side}_tokens"]) for item in inputs["items"]])
        for side in ("query", "code")
    }
    limits = config["max_seq_length"], config["max_query_tokens_in_pair"]
    pairs = [tokenizer.pair(q, c, *limits) for q, c in zip(*texts.values(), strict=True)]
    assert not any(any(types) for _, types in pairs), "RoBERTa has no token types"
    rows = [ids for ids, _ in pairs]
    pair_ids, pair_mask = _padded(rows, limits[0], config["pair_pad_id_official"])
    singles = {
        name: [tokenizer.single(ids, config[f"{name}_length"]) for ids in texts[side]]
        for name, side in (("nl", "query"), ("code", "code"))
    }
    padded = {
        name: _padded(rows, config[f"{name}_length"], tokenizer.pad_id)[0]
        for name, rows in singles.items()
    }
    return {
        "pair_ids": pair_ids,
        "pair_mask": pair_mask,
        "pair_length": [len(row) for row in rows],
        "code_ids": padded["code"],
        "nl_ids": padded["nl"],
    }


def _whitespace_tokenizer(vocabulary: dict[str, int]) -> CodeTokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return CodeTokenizer(path, mode=UNIXCODER)


def _padded(rows: list[list[int]], length: int, value: int) -> tuple[Any, Any]:
    """To a given length, by a row of that length that is then taken away."""
    ids, mask = pad([*rows, [value] * length], value)
    return ids[:-1], mask[:-1]
