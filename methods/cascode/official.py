"""Files of the CodeBERT repository and encoders of the hub <-> our modules (spec section 9).

There is no official CasCode. Three kinds of files exist: an encoder as the hub has it
(`embeddings...`, perhaps below `roberta.` or `bert.`), the bi-encoder that the repository
fine-tunes (the same below `encoder.`), and its pair classifier (`roberta....`, `classifier....`);
the joint model of the golden case has the encoder below `encoder.` and the same `classifier....`.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from methods.cascode.model import CodeEncoder, Pooling
from methods.cascode.module import CodeSearch, Fast, PairJudge
from shared.training.checkpoints import CheckpointError, load_checkpoint, load_module
from shared.training.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.training.pretrained import (
    PACKAGE,
    POSITION_IDS,
    bert_rules,
    hugging_face_state,
    model_folder,
)

HEAD = [
    Rule("classifier.dense.{rest}", "classifier.dense.{rest}"),
    Rule("classifier.out_proj.{rest}", "classifier.output.{rest}"),
]


def load(module: CodeSearch, path: str | PathLike[str]) -> KeyReport:
    """Load weights into a module that needs no others.

    Args:
        path: a file of the repository (`model.bin`, `pytorch_model.bin`), a folder in Hugging
            Face's layout, or "package:NAME"; `Fast` takes any encoder, the others a classifier.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or of
            another shape; the module is then unchanged.
    """
    return load_weights(module, read(path))


def load_weights(module: CodeSearch, source: Mapping[str, Any]) -> KeyReport:
    """`load` from the content of a file; also takes what `export` gives."""
    return _replaced(module, import_official(source, table(source, module), module))


def load_initial(module: CodeSearch, path: str | PathLike[str]) -> KeyReport:
    """Load the encoder that training starts from; a head that the file lacks stays as it is."""
    source = read(path)
    fresh = {"classifier.{rest}": "the file has no classifier of pairs"}
    return _replaced(module, import_official(source, table(source, module, fresh), module))


def warm_start(module: CodeSearch, path: str | PathLike[str], kind: str) -> KeyReport:
    """As `load_initial`; with `kind` "tenfold" the encoder of a checkpoint of ours.

    Raises:
        ValueError: another kind than "tenfold" or "official".
    """
    if kind == "official":
        return load_initial(module, path)
    if kind != "tenfold":
        raise ValueError(f'warm_start.kind is "tenfold" or "official", got {kind!r}')
    trained = load_module(path)
    if not isinstance(trained, CodeSearch):
        raise CheckpointError(f"{path}: a checkpoint of {type(trained).__name__}, not of CasCode")
    fresh = {"classifier.{rest}": "only the encoder is taken"}
    source = {f"encoder.{key}": value for key, value in trained.encoder.state_dict().items()}
    report = import_official(source, KeyTable([Rule("{key}", "{key}")], {}, fresh), module)
    return _replaced(module, report)


def export(module: CodeSearch) -> dict[str, Any]:
    """The module's state under the repository's names: a bi-encoder or a classifier."""
    prefix = "encoder." if isinstance(module, Fast) else "roberta."
    return export_official(module, KeyTable(_rules(prefix, module)))


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Content of a file, or of a folder or package of Hugging Face's layout."""
    if str(path).startswith(PACKAGE) or Path(path).is_dir():
        return hugging_face_state(model_folder(path))
    return load_checkpoint(path)


def table(
    source: Mapping[str, Any], module: CodeSearch, fresh: Mapping[str, str] | None = None
) -> KeyTable:
    """How the keys of a file become those of the module; what it has no use for is dropped."""
    prefix = encoder_prefix(source)
    dropped = {
        f"{prefix}embeddings.position_ids": POSITION_IDS,
        f"{prefix}embeddings.token_type_ids": POSITION_IDS,
        "lm_head.{rest}": "the head of RoBERTa's own training",
        "cls.{rest}": "the head of BERT's own training",
    }
    if module.encoder.pooler is None:
        dropped[f"{prefix}pooler.{{rest}}"] = f"pooling={module.encoder.pooling} has no use for it"
    if not isinstance(module, PairJudge):
        dropped["classifier.{rest}"] = "the first stage judges no pairs"
    return KeyTable(_rules(prefix, module), dropped, fresh or {})


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


def load_searcher(
    path: str | PathLike[str], pooling: Pooling = "mean", normalize: bool = True
) -> CodeEncoder:
    """The encoder of a first stage: of a checkpoint of ours, or of a folder or package.

    Args:
        pooling, normalize: of a folder's or package's encoder; a checkpoint knows its own.
    """
    if str(path).startswith(PACKAGE) or Path(path).is_dir():
        folder = model_folder(path)
        carrier = Fast(text=text_config(folder), pooling=pooling, normalize=normalize)
        load(carrier, folder)
        return carrier.encoder
    module = load_module(path)
    if not isinstance(module, CodeSearch):
        raise CheckpointError(f"{path}: a checkpoint of {type(module).__name__}, not of CasCode")
    return module.encoder


def _replaced(module: CodeSearch, report: KeyReport) -> KeyReport:
    """The report; training now starts from what was loaded, no longer from `initial`."""
    module.initial = None
    return report


def _rules(prefix: str, module: CodeSearch) -> list[Rule]:
    rules = bert_rules(prefix, "encoder.text.")
    if module.encoder.pooler is not None:
        rules.append(Rule(f"{prefix}pooler.dense.{{rest}}", "encoder.pooler.{rest}"))
    return rules + (HEAD if isinstance(module, PairJudge) else [])
