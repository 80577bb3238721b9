"""Files of the CodeBERT repository and encoders of the hub <-> our modules (docs/papers/cascode.md,
section 9), and the first stage of a search.

Three kinds of files exist: an encoder as the hub has it (`embeddings...`, perhaps below `roberta.`
or `bert.`), the bi-encoder that the repository fine-tunes (the same below `encoder.`), and its pair
classifier (`roberta....`, `classifier....`); the joint model of the golden case has the encoder
below `encoder.` and the same `classifier....`.

Modules have an `encoder`, and a `classifier` if they judge pairs. Lightning is not imported, for
which a query from the command line need not wait.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from methods.cascode.folders import Pooling, text_config
from methods.cascode.model import CodeEncoder
from shared.checkpoints.official import KeyReport, KeyTable, Rule, export_official, import_official
from shared.checkpoints.pretrained_text import (
    POSITION_IDS,
    bert_rules,
    hugging_face_state,
)
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of, load_module
from shared.data.readers.model_files import is_folder, model_folder

HEAD = [
    Rule("classifier.dense.{rest}", "classifier.dense.{rest}"),
    Rule("classifier.out_proj.{rest}", "classifier.output.{rest}"),
]
NO_JUDGE = {"classifier.{rest}": "the first stage judges no pairs"}


def load(module: Any, source: Checkpoint, fresh: Mapping[str, str] | None = None) -> KeyReport:
    """Load weights into a module that needs no others; `Fast` takes any encoder, the others a
    classifier. See `read`. What is loaded may lack `fresh` keys, named with the reason.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or of
            another shape; the module is then unchanged.
    """
    source = read(source)
    rules, dropped = encoder_rules(source, module.encoder)
    if hasattr(module, "classifier"):
        rules += HEAD
    else:
        dropped |= NO_JUDGE
    return _imported(source, KeyTable(rules, dropped, fresh or {}), module)


def load_initial(module: nn.Module, path: str | PathLike[str]) -> KeyReport:
    """Load the encoder that training starts from; a head that the file lacks stays as it is."""
    fresh = {"classifier.{rest}": "the file has no classifier of pairs"}
    return load(module, path, fresh)


def warm_start(module: nn.Module, path: str | PathLike[str], kind: str) -> KeyReport:
    """As `load_initial`; with `kind` "tenfold" the encoder of a checkpoint of ours."""
    if kind == "official":
        return load_initial(module, path)
    if kind != "tenfold":
        raise ValueError(f'warm_start.kind is "tenfold" or "official", got {kind!r}')
    state = trained_encoder(path).state_dict()
    fresh = {"classifier.{rest}": "only the encoder is taken"}
    table = KeyTable([Rule("{key}", "{key}")], {}, fresh)
    return _imported({f"encoder.{key}": value for key, value in state.items()}, table, module)


def export(module: Any) -> dict[str, Any]:
    """The module's state under the repository's names: a bi-encoder or a classifier."""
    judges = hasattr(module, "classifier")
    rules = rules_below("roberta." if judges else "encoder.", module.encoder)
    return export_official(module, KeyTable(rules + HEAD if judges else rules))


def _imported(source: Mapping[str, Any], table: KeyTable, module: Any) -> KeyReport:
    """Import; training now starts from what was loaded, no longer from `initial`."""
    report = import_official(source, table, module)
    module.initial = None
    return report


def load_searcher(
    path: str | PathLike[str], pooling: Pooling = "mean", normalize: bool = True
) -> CodeEncoder:
    """The encoder of a first stage: of a checkpoint of ours, which knows its pooling, or of a
    folder or package; errors as those of `load`."""
    if not is_folder(path):
        return trained_encoder(path)
    folder = model_folder(path)
    encoder = CodeEncoder(text_config(folder), pooling, normalize)
    source = hugging_face_state(folder)
    rules, dropped = encoder_rules(source, encoder)
    table = KeyTable(rules, dropped | NO_JUDGE)
    import_official(source, table, nn.ModuleDict({"encoder": encoder}))
    return encoder


def trained_encoder(path: str | PathLike[str]) -> CodeEncoder:
    """The encoder of a checkpoint of ours; a CheckpointError if it is of another method."""
    module = load_module(path)
    if not isinstance(encoder := getattr(module, "encoder", None), CodeEncoder):
        raise CheckpointError(f"{path}: a checkpoint of {type(module).__name__}, not of CasCode")
    return encoder


def read(source: Checkpoint) -> Mapping[str, Any]:
    """Content of a file of the repository (`model.bin`, `pytorch_model.bin`), of a folder in
    Hugging Face's layout, of "package:NAME" or "hub:NAME"; a content as it is."""
    if isinstance(source, Mapping) or not is_folder(source):
        return content_of(source)
    return hugging_face_state(model_folder(source))


def encoder_rules(
    source: Mapping[str, Any], encoder: CodeEncoder
) -> tuple[list[Rule], dict[str, str]]:
    """How the keys of a file become those of a module's `encoder`, and which it has no use for."""
    for prefix in ("encoder.", "roberta.", "bert.", ""):
        if f"{prefix}embeddings.word_embeddings.weight" in source:
            break
    else:
        key = "embeddings.word_embeddings.weight (also below encoder., roberta. and bert.)"
        raise CheckpointError(f"no BERT or RoBERTa encoder: the file lacks {key}")
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
