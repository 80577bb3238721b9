"""Encoders as the hub and the CodeBERT repository have them, and the first stage of a search.

A folder or package in Hugging Face's layout is loaded without Lightning, for which a query from the
command line need not wait.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from methods.cascode.model import CodeEncoder, Pooling
from shared.training.checkpoints import CheckpointError, load_checkpoint, load_module
from shared.training.official import KeyTable, Rule, import_official
from shared.training.pretrained_text import (
    PACKAGE,
    POSITION_IDS,
    bert_rules,
    hugging_face_state,
    model_folder,
)

NO_JUDGE = {"classifier.{rest}": "the first stage judges no pairs"}


def load_searcher(
    path: str | PathLike[str], pooling: Pooling = "mean", normalize: bool = True
) -> CodeEncoder:
    """The encoder of a first stage: of a checkpoint of ours, or of a folder or package.

    Args:
        pooling, normalize: of a folder's or package's encoder; a checkpoint knows its own.

    Raises:
        CheckpointError: not readable without executing code, of another method, or any key
            missing, unexpected or of another shape.
    """
    if is_folder(path):
        folder = model_folder(path)
        encoder = CodeEncoder(text_config(folder), pooling, normalize)
        source = hugging_face_state(folder)
        rules, dropped = encoder_rules(source, encoder)
        table = KeyTable(rules, dropped | NO_JUDGE)
        import_official(source, table, nn.ModuleDict({"encoder": encoder}))
        return encoder
    from methods.cascode.module import CodeSearch

    module = load_module(path)
    if not isinstance(module, CodeSearch):
        raise CheckpointError(f"{path}: a checkpoint of {type(module).__name__}, not of CasCode")
    return module.encoder


def is_folder(path: str | PathLike[str]) -> bool:
    """Whether it is one in Hugging Face's layout or a package, not a file."""
    return str(path).startswith(PACKAGE) or Path(path).is_dir()


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Content of a file, or of a folder or package of Hugging Face's layout."""
    if is_folder(path):
        return hugging_face_state(model_folder(path))
    return load_checkpoint(path)


def encoder_rules(
    source: Mapping[str, Any], encoder: CodeEncoder
) -> tuple[list[Rule], dict[str, str]]:
    """How the keys of a file become those of a module's `encoder`, and which it has no use for."""
    prefix = encoder_prefix(source)
    dropped = {
        f"{prefix}embeddings.position_ids": POSITION_IDS,
        f"{prefix}embeddings.token_type_ids": POSITION_IDS,
        "lm_head.{rest}": "the head of RoBERTa's own training",
        "cls.{rest}": "the head of BERT's own training",
    }
    if encoder.pooler is None:
        dropped[f"{prefix}pooler.{{rest}}"] = f"pooling={encoder.pooling} has no use for it"
    return rules_below(prefix, encoder), dropped


def rules_below(prefix: str, encoder: CodeEncoder) -> list[Rule]:
    """Rules for the keys of a file that has the encoder below `prefix`."""
    rules = bert_rules(prefix, "encoder.text.")
    if encoder.pooler is not None:
        rules.append(Rule(f"{prefix}pooler.dense.{{rest}}", "encoder.pooler.{rest}"))
    return rules


def encoder_prefix(source: Mapping[str, Any]) -> str:
    """Of the encoder's keys in a file.

    Raises:
        CheckpointError: no encoder in it.
    """
    for prefix in ("encoder.", "roberta.", "bert.", ""):
        if f"{prefix}embeddings.word_embeddings.weight" in source:
            return prefix
    raise CheckpointError(
        "no BERT or RoBERTa encoder: the file lacks embeddings.word_embeddings.weight (also below "
        "encoder., roberta. and bert.)"
    )


def text_config(folder: Path) -> dict[str, Any]:
    """Arguments of `TextTransformer` as a folder's config.json has them.

    Raises:
        CheckpointError: unreadable, or a model of another architecture.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        if (found := config["model_type"]) not in ("bert", "roberta"):
            raise CheckpointError(
                f"{path}: model_type {found!r}, but only bert and roberta are known"
            )
        return {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "intermediate_size": config["intermediate_size"],
            "max_positions": config["max_position_embeddings"],
            "type_vocab_size": config["type_vocab_size"],
            "dropout": config["hidden_dropout_prob"],
            "eps": config["layer_norm_eps"],
            "pad_id": config["pad_token_id"],
            "positions_after_pad": config["model_type"] == "roberta",
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not readable as the config of an encoder ({error!r})"
        ) from error
